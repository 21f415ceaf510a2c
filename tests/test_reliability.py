"""Reliability of factor probabilities: recalls, confusion and calibration error against what is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faces.reader import read_image
from model.prompts import AXES
from recipes.default_model import crops as crops_module
from recipes.default_model.reports.reliability import (
    Labelled,
    Reliability,
    confusion_table,
    damaged,
    draw,
    factor_rows,
    from_rows,
    judge,
)
from scoring import Scorer

SAMPLES = Path(__file__).parents[1] / "samples"


def reliability(best: np.ndarray, good: np.ndarray) -> Reliability:
    """Of the two-level factor illumination."""
    return Reliability(Labelled("illumination", "x", [], good.astype(int)), np.stack([1 - best, best], axis=1))


def test_honest_probabilities_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    best = rng.random(40_000)
    honest = reliability(best, rng.random(40_000) < best)
    assert honest.calibration_error() < 0.02
    boastful = reliability(np.where(best > 0.5, 0.95, 0.05), honest.good)  # three of four are right
    assert boastful.calibration_error() == pytest.approx(0.2, abs=0.02)
    assert [count for *_, count in boastful.bins()] == [(best <= 0.5).sum(), (best > 0.5).sum()]
    assert reliability(np.array([1.0, 0.0]), np.array([True, False])).calibration_error() == 0


def test_few_faces_have_an_error_by_chance() -> None:
    """Perfect probabilities: of 40,000 faces the error is next to nothing, of 30 it is not, and 95 % of draws are below
    what is said."""
    rng = np.random.default_rng(1)
    best = rng.random(30)
    limit = reliability(best, best < 0.5).error_by_chance()
    errors = [reliability(best, rng.random(30) < best).calibration_error() for _ in range(400)]
    assert limit > 0.1
    assert 0.92 < np.mean(np.array(errors) <= limit) < 0.98
    many = rng.random(40_000)
    assert reliability(many, many < 0.5).error_by_chance(20) < 0.01
    assert reliability(np.array([1.0, 0.0]), np.array([True, False])).error_by_chance() == 0


def test_three_levels_have_a_good_and_a_bad_side() -> None:
    levels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    seen = np.array([0, 1, 1, 2, 2, 2, 2, 0])
    one = Reliability(Labelled("pose", "x", [], levels), np.eye(3)[seen] * 0.8 + 0.05)
    assert one.confusion.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 3]]
    assert one.recalls() == (0.75, 0.75)
    errors = [one.calibration_error(), one.error_by_chance()]
    assert list(factor_rows([one])) == [["pose", "x", [0.75, 4], [0.75, 4], 0.75, None, *errors]]
    assert next(factor_rows([one], [[one]]))[-1] == [0.75, one.calibration_error()]
    columns, rows = confusion_table(one)
    assert [column.name for column in columns[1:]] == [f"seen as {name}" for name in AXES["pose"]]
    assert rows[1] == ["slight angle", 0, 1, 1]


def test_the_default_model_sees_the_damage_of_samples(tmp_path: Path) -> None:
    clean = [read_image(SAMPLES / "astronaut.png")] * 2
    judged = [judge(Scorer(device="cpu"), damaged(factor, clean)) for factor in ("blur", "illumination", "occlusion")]
    blur = judged[0]
    assert blur.labelled.levels.tolist() == [0] * 6 + [2] * 2
    assert blur.probabilities.sum(axis=1) == pytest.approx(1)
    assert blur.recalls() == (1.0, 1.0)
    assert len(judged[2].labelled.crops) == 5 * 2 + 2
    draw(judged, tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as image:
        assert image.size[0] > 3 * 300


def test_tables_name_levels(tmp_path: Path) -> None:
    (tmp_path / "factors").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "factors/a.png")
    labels = ["exaggerated expression", "typical expression"]
    one = from_rows(tmp_path, "expression", "here", [{"path": "factors/a.png", "label": label} for label in labels])
    assert [AXES["expression"][level] for level in one.levels] == labels
    assert len(one.crops) == 2


def test_first_of_each_identity() -> None:
    paths = [Path(name) for name in ("a/1", "a/2", "b/1", "c/1", "c/2")]
    assert crops_module.first_of_each(paths) == [Path("a/1"), Path("b/1"), Path("c/1")]
