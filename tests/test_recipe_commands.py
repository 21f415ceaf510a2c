"""Every script of the recipe and of its reports says in one line what is missing, and ends with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.default_model import (
    anchors,
    bands,
    calibrate,
    make_faces,
    make_start,
    mean_face,
    percentiles,
    train_factors,
)
from recipes.default_model.reports import (
    ablation,
    cross_fit,
    edc_tables,
    measure,
    reliability,
    robustness,
    subgroups,
    unseen,
)
from recipes.dsl_fiqa import ablation as dsl_ablation
from recipes.dsl_fiqa import disagreement, encoders, strength
from recipes.ediffiqa_t import fit_head, mean_ranks
from recipes.ediffiqa_t import make_faces as make_quality_faces

CALLS: list[tuple[Callable[[list[str]], int], list[str]]] = [
    (train_factors.main, ["--data", "nothing"]),
    (make_faces.main, ["--data", "nothing", "--output", "out"]),
    (anchors.main, ["labels.tsv", "fr.npz", "--output", "out.tsv"]),
    (make_start.main, ["--trunk", "fr.safetensors", "--output", "out.safetensors"]),
    (percentiles.main, ["weights.safetensors", "faces", "--set", "a set"]),
    (calibrate.main, ["weights.safetensors", "--data", "nothing"]),
    (bands.main, ["--data", "nothing"]),
    (mean_face.main, ["--data", "nothing"]),
    (measure.main, ["--data", "nothing"]),
    (reliability.main, ["--data", "nothing"]),
    (robustness.main, ["faces"]),
    (subgroups.main, ["fr.npz", "--scores", "scores.csv", "--data", "nothing"]),
    (cross_fit.main, ["--data", "nothing", "--tables", "nothing"]),
    (ablation.main, ["--data", "nothing", "--tables", "nothing", "--start", "start.safetensors", "--output", "out"]),
    (unseen.main, ["--data", "nothing", "--output", "out"]),
    (strength.main, ["nothing"]),
    (disagreement.main, ["--data", "nothing"]),
    (dsl_ablation.main, ["nothing", "--encoder", "encoder.safetensors"]),
    (
        encoders.main,
        ["photos", "--set", "nothing", "--encoder", "a", "--classifier", "b", "--recognizer", "fr.safetensors"],
    ),
    (edc_tables.main, ["edc_lfw=nothing"]),
    (make_quality_faces.main, ["--data", "nothing", "--output", "out"]),
    (mean_ranks.main, ["nothing", "--output", "out.csv"]),
    (fit_head.main, ["--backbone", "nothing", "--embeddings", "e.npz", "--scores", "nothing", "--output", "out"]),
]


@pytest.mark.parametrize(("main", "call"), CALLS, ids=lambda value: getattr(value, "__module__", "").split(".")[-1])
def test_what_is_missing_is_said_in_one_line(
    main: Callable[[list[str]], int],
    call: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(call) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert any(word in error for word in (*call, "nothing/")), error
