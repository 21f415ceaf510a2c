"""The robustness report: the changes are what they say, and the default model passes on the sample faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faces.listing import list_images
from faces.reader import read_image
from recipes.default_model.reports import robustness
from recipes.default_model.reports.results import as_markdown, read_result
from recipes.default_model.reports.robustness import Effect, changes, grey, measure, mirror, move, resample, sticker
from scoring import Score, Scorer

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [read_image(path) for path in list_images(SAMPLES)]


def test_changes_are_what_they_say(crops: list[np.ndarray]) -> None:
    face = crops[0]
    np.testing.assert_array_equal(move(face), face)
    np.testing.assert_array_equal(move(face, right=3, down=-2)[:-2, 3:], face[2:, :-3])
    np.testing.assert_allclose(move(move(face, degrees=90), degrees=-90)[1:-1, 1:-1], face[1:-1, 1:-1], atol=2)
    np.testing.assert_array_equal(move(face, degrees=180)[1:-1, 1:-1], face[::-1, ::-1][1:-1, 1:-1])
    np.testing.assert_array_equal(mirror(mirror(face)), face)
    assert np.ptp(grey(face), axis=2).max() == 0
    half = resample(face, [56])
    assert half.shape == face.shape
    assert np.abs(np.diff(half.astype(float), axis=0)).mean() < 0.9 * np.abs(np.diff(face.astype(float), axis=0)).mean()
    np.testing.assert_array_equal(resample(face, []), face)
    blank, written = sticker(face, "", 66), sticker(face, "perfect quality", 66)
    assert (blank[60, 10:100] == 255).all()
    assert 100 < (written != blank).any(axis=2).sum() < 1500
    assert (written[:, -6:] == face[:, -6:]).all(), "the text stays on its label"
    for _, variants in changes():
        for variant in variants:
            changed = variant(face)
            assert changed.shape == face.shape
            assert changed.dtype == np.uint8
            assert changed.flags["C_CONTIGUOUS"]
            assert (changed != face).any()


class Brightness:
    """Scores the mean of an image: the effects of some changes are then known."""

    def score(self, images: list[np.ndarray]) -> list[Score]:
        return [Score(None, "ok", float(image.mean())) for image in images]


def test_effects_of_a_known_score(crops: list[np.ndarray]) -> None:
    effects = {effect.name: effect for effect in measure(Brightness(), crops)}
    assert effects["horizontal flip"] == Effect("horizontal flip", 0.0, 0.0, pytest.approx(1), 0.0)
    labels = [sticker(crop, "", row).mean() - crop.mean() for row in (16, 66, 100) for crop in crops]
    blank = effects["sticker, blank"]
    assert blank.mean == pytest.approx(np.mean(labels))
    assert blank.mean_size == pytest.approx(np.mean(np.abs(labels)))
    assert blank.raised == np.mean(np.array(labels) > 0)


def test_the_default_model_on_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    effects = {effect.name: effect for effect in measure(Scorer(device="cpu"), [read_image(SAMPLES / "astronaut.png")])}
    for text in ("perfect quality", "bad quality"):
        assert effects[f"sticker “{text}”"].mean < 0
    assert effects["JPEG 10"].mean < effects["JPEG 95"].mean
    assert effects["shift by 1 px"].mean_size < 0.05


def test_the_command_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(robustness, "changes", lambda: iter([("greyscale", [grey])]))
    assert robustness.main([str(SAMPLES), "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 faces; standard deviation")
    assert len({line.count("|") for line in lines[4:7]}) == 1
    assert lines[6].startswith("| greyscale | ")
    result = read_result(tmp_path / "robustness.json")
    assert as_markdown(result).splitlines() == lines[4:7]
    assert result.weights.keys() == {"clib-fiqa"}
    assert robustness.main([str(SAMPLES / "README.md")]) == 2
    assert capsys.readouterr().err.endswith("README.md: not_an_image\n")
