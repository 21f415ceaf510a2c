"""The shared degradations: any size, deterministic, growing with their strength."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from faces.degradations import KINDS, PHOTOGRAPHIC, compress, degrade, require_photographic
from faces.reader import read_image

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_image(SAMPLES / "astronaut.png")


@pytest.fixture(scope="module")
def crop(photograph: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photograph[:112, :112])


def test_the_order_of_the_kinds_is_that_of_the_default_models_draws() -> None:
    names = "gaussian_blur motion_blur low_resolution jpeg noise dark bright side_light colour_light"
    assert " ".join(KINDS) == f"{names} mask glasses cap patch hand"
    assert [factor for _, factor in KINDS.values()] == [
        *["blur"] * 3, None, None, *["illumination"] * 4, *["occlusion"] * 5
    ]  # fmt: skip
    assert set(PHOTOGRAPHIC) < set(KINDS)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_in_aligned_crops_a_unit_is_a_pixel(crop: np.ndarray, strength: float) -> None:
    """The damage that the default model was trained on."""
    found = {kind: degrade(crop, kind, strength, np.random.default_rng(5)) for kind in PHOTOGRAPHIC}
    rng = np.random.default_rng(5)
    assert np.array_equal(found["gaussian_blur"], cv2.GaussianBlur(crop, (0, 0), 0.8 + 4.2 * strength))
    grains = rng.normal(0, 10 + 60 * strength, crop.shape)
    assert np.array_equal(found["noise"], np.clip(np.rint(crop + grains), 0, 255).astype(np.uint8))
    side = round(48 * (10 / 48) ** strength)
    enlarge = int(np.random.default_rng(5).choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    assert np.array_equal(found["low_resolution"], cv2.resize(small, (112, 112), interpolation=enlarge))
    assert np.array_equal(found["jpeg"], compress(crop, round(30 * (2 / 30) ** strength)))


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_damaged_in_every_kind(crop: np.ndarray, kind: str) -> None:
    before = crop.copy()
    found = degrade(crop, kind, 0.5, np.random.default_rng(1))
    assert found.shape == crop.shape
    assert found.dtype == np.uint8
    assert not np.array_equal(found, crop)
    assert np.array_equal(found, degrade(crop, kind, 0.5, np.random.default_rng(1)))
    assert np.array_equal(crop, before)


@pytest.mark.parametrize("kind", PHOTOGRAPHIC)
@pytest.mark.parametrize("shape", [(97, 160), (300, 220)])
def test_any_size_and_deterministic(photograph: np.ndarray, kind: str, shape: tuple[int, int]) -> None:
    image = cv2.resize(photograph, shape[::-1])
    before = image.copy()
    found = degrade(image, kind, 0.5, np.random.default_rng(1))
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert np.array_equal(found, degrade(image, kind, 0.5, np.random.default_rng(1)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", PHOTOGRAPHIC)
def test_stronger_is_farther_from_the_original(photograph: np.ndarray, kind: str) -> None:
    distances = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        versions = [degrade(photograph, kind, strength, np.random.default_rng(seed)) for seed in range(6)]
        distances.append(np.mean([np.abs(version.astype(float) - photograph).mean() for version in versions]))
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_unknown_kinds_are_named() -> None:
    assert require_photographic(()) == PHOTOGRAPHIC
    with pytest.raises(ValueError, match="no degradation fog: expected some of gaussian_blur"):
        require_photographic(("jpeg", "fog"))
