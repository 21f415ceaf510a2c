"""The tables of docs/evaluation.md from what `evaluate.py edc` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.compare import REPLICATES
from recipes.default_model.reports import edc_tables
from recipes.default_model.reports.edc_tables import EXCERPT
from recipes.default_model.reports.results import as_markdown, read_result

METHODS = {"oracle@foamliu": 0.2, **{name: 0.5 + 0.01 * i for i, name in enumerate(EXCERPT)}}


def row(method: str, fr: str, fmr: float, value: float) -> dict[str, Any]:
    pauc = {"pauc": value * 0.03, "pauc_relative": value, "pauc_relative_ci": [value - 0.05, value + 0.05]}
    start = {"fnmr0": 0.1, "errors": 120, "resolvable": True}
    return {"method": method, "fr": fr, "fmr": fmr, "limit": 0.3} | start | pauc


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two runs of edc, in which every method is 0.1 worse on the second set."""
    rng = np.random.default_rng(0)
    for name, shift in (("celeba", 0.0), ("lfw", 0.1)):
        (tmp_path / name).mkdir()
        rows = [row(m, fr, 1e-3, v + shift) for m, v in METHODS.items() for fr in ("foamliu", "faceplugin", "dlib")]
        (tmp_path / name / "results.json").write_text(json.dumps({"results": [*rows, rows[0] | {"limit": 0.2}]}))
        draws = rng.normal(scale=0.01, size=(1, 50)) + [[r["pauc_relative"]] for r in [*rows, rows[0]]]
        np.save(tmp_path / name / REPLICATES, draws.astype(np.float32))
    return tmp_path


def test_tables_of_other_and_of_the_same_model_and_the_excerpt(folders: Path) -> None:
    named = [f"edc_celeba={folders / 'celeba'}", f"edc_lfw={folders / 'lfw'}"]
    command = ["--command", "benchmarks/some.sh"]
    assert edc_tables.main([*named, "--excerpt", "comparison", *command, "--results", str(folders)]) == 0
    table = read_result(folders / "edc_celeba.json")
    assert table.command == "benchmarks/some.sh"
    assert [column.name for column in table.columns] == [
        "method", "faceplugin @ 1e-3", "dlib @ 1e-3", "foamliu @ 1e-3", "scaled mean"
    ]  # fmt: skip
    assert table.rows[0] == ["FNMR(0), errors", [0.1, 120], [0.1, 120], [0.1, 120], ""]
    assert table.rows[1] == ["oracle@foamliu", [0.2, 0.15, 0.25], [0.2, 0.15, 0.25], None, 0.0]
    assert "**clib-fiqa@foamliu**" in [line[0] for line in table.rows]
    same = read_result(folders / "edc_lfw_same_model.json")
    assert {str(line[0]) for line in same.rows[1:]} == {
        *(f"**{m}**" if m.startswith("clib") else m for m in METHODS if "@foamliu" in m)
    }
    short = read_result(folders / "comparison.json")
    assert short.rows[0][1:] == pytest.approx([0.5, 0.5, 0.6, 0.6])
    assert len(short.rows) == len(EXCERPT)
    assert "| **0.500** | **0.500** | **0.600** | **0.600** |" in as_markdown(short)


def test_paired_differences(folders: Path) -> None:
    named = f"edc_differences={folders / 'celeba'},{folders / 'lfw'}"
    assert edc_tables.main([named, "--against", "clib-fiqa@foamliu", "--results", str(folders)]) == 0
    table = read_result(folders / "edc_differences.json")
    by_name = {str(line[0]): line for line in table.rows}
    assert by_name["norm@foamliu"][1] == pytest.approx([-0.01] * 3)
    assert by_name["norm@foamliu"][2] == [4, 4]
    assert by_name["oracle@foamliu"][4] == [0, 4]


def test_what_goes_wrong_is_said(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edc_tables.main([f"edc_lfw={folders / 'nothing'}"]) == 2
    assert "no such file; `evaluate.py edc" in capsys.readouterr().err
    assert edc_tables.main(["edc_lfw"]) == 2
    assert "NAME=FOLDER was expected" in capsys.readouterr().err
    assert edc_tables.main([f"edc_lfw={folders / 'lfw'}", "--excerpt", "comparison"]) == 2
    assert "missing: edc_celeba" in capsys.readouterr().err
