"""Every script of the recipe and of its reports says in one line what is missing, and ends with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    borders,
    cross_fit,
    edc_tables,
    measure,
    reliability,
    robustness,
    subgroups,
    unseen,
)
from recipes.dsl_fiqa import ablation as dsl_ablation
from recipes.dsl_fiqa import disagreement, encoders, simple_statistics, strength
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
    (borders.main, ["--data", "nothing", "--tables", "nothing"]),
    (ablation.main, ["--data", "nothing", "--tables", "nothing", "--start", "start.safetensors", "--output", "out"]),
    (unseen.main, ["--data", "nothing", "--output", "out"]),
    (strength.main, ["nothing"]),
    (simple_statistics.main, ["nothing"]),
    (disagreement.main, ["--data", "nothing"]),
    (dsl_ablation.main, ["nothing", "--encoder", "encoder.safetensors"]),
    (encoders.main, ["photos", "--set", "nothing", "--encoder", "a=b", "--recognizer", "fr.safetensors"]),
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


def test_the_interval_of_a_difference_holds_it() -> None:
    """A variant that ranks at random is below one that ranks rightly; one that is the same differs by 0."""
    rng = np.random.default_rng(0)
    scores, people = rng.random(120), np.repeat(np.arange(40).astype(str), 3)
    right, random = np.stack([scores, scores**2]), rng.random((2, 120))
    value, low, high = dsl_ablation.difference(random, right, scores, people, replicates=50)
    assert low <= value <= high < -0.5
    assert dsl_ablation.difference(right, right, scores, people, replicates=5) == [0, 0, 0]


def test_simple_statistics_tell_strength() -> None:
    """Of learned kinds; and differences are those of neighbours."""
    grid = np.add.outer(10 * np.arange(4), np.arange(5)).astype(np.float32)
    right, down, falling, rising = simple_statistics.changes(grid, 1)
    assert [set(part.ravel().tolist()) for part in (right, down, falling, rising)] == [{1}, {10}, {11}, {9}]
    assert all(not part.any() for part in simple_statistics.changes(grid, 2))
    rng = np.random.default_rng(0)
    strengths = rng.random(400)
    values = np.column_stack([strengths + 0.05 * rng.normal(size=400), rng.normal(size=400)])
    known = simple_statistics.Examples(values[:300], np.full(300, "noise"), strengths[:300])
    predicted = simple_statistics.fitted_strengths(known, values[300:])
    assert np.corrcoef(predicted, strengths[300:])[0, 1] > 0.9
