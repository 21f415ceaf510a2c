"""The shared degradations: any size, deterministic, growing with their strength."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from faces import degrade as crops
from faces.degradations import DEGRADATIONS, degrade, require_kinds
from faces.reader import read_image

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_image(SAMPLES / "astronaut.png")


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_aligned_crops_are_harmed_as_the_default_models_were(photograph: np.ndarray, kind: str) -> None:
    crop = np.ascontiguousarray(photograph[:112, :112])
    for strength in (0.0, 0.4, 1.0):
        expected = crops.degrade(crop, kind, strength, np.random.default_rng(5))
        assert np.array_equal(degrade(crop, kind, strength, np.random.default_rng(5)), expected)


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(97, 160), (300, 220)])
def test_any_size_and_deterministic(photograph: np.ndarray, kind: str, shape: tuple[int, int]) -> None:
    image = cv2.resize(photograph, shape[::-1])
    before = image.copy()
    found = degrade(image, kind, 0.5, np.random.default_rng(1))
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert np.array_equal(found, degrade(image, kind, 0.5, np.random.default_rng(1)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_stronger_is_farther_from_the_original(photograph: np.ndarray, kind: str) -> None:
    distances = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        versions = [degrade(photograph, kind, strength, np.random.default_rng(seed)) for seed in range(6)]
        distances.append(np.mean([np.abs(version.astype(float) - photograph).mean() for version in versions]))
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_unknown_kinds_are_named() -> None:
    assert require_kinds(()) == tuple(DEGRADATIONS)
    with pytest.raises(ValueError, match="no degradation fog: expected some of gaussian_blur"):
        require_kinds(("jpeg", "fog"))
