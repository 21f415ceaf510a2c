"""The sample crops: six, aligned, remade by their script, and each what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faces.blur import sharpness
from faces.listing import list_images
from faces.reader import read_image

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def crops() -> dict[str, np.ndarray]:
    return {path.name: read_image(path) for path in list_images(SAMPLES)}


def test_the_script_makes_them_again(crops: dict[str, np.ndarray]) -> None:
    from samples.make_samples import make_samples

    made = make_samples()
    assert made.keys() == crops.keys()
    assert len(made) == 6
    for name, crop in made.items():
        assert crop.shape == (112, 112, 3)
        difference = np.abs(crop.astype(int) - crops[name]).mean()
        assert difference < 1, name   # other releases of OpenCV may round differently


def test_each_is_what_its_name_says(crops: dict[str, np.ndarray]) -> None:
    assert sharpness(crops["astronaut_blurred.png"]) < 0.6 * sharpness(crops["astronaut.png"])
    assert crops["hopper_dark.png"].mean() < 25 < crops["hopper_tiny.png"].mean()
    covered = (crops["astronaut_occluded.png"] != crops["astronaut.png"]).any(axis=2)
    assert 0.3 < covered.mean() < 0.5
    assert not covered[:60].any()


def test_their_origin_is_noted(crops: dict[str, np.ndarray]) -> None:
    notes = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in notes for name in crops)
