"""The published sharpness against its golden numbers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from faces.blur import blur_class, sharpness


def test_golden_sharpness(golden: Path) -> None:
    with np.load(golden / "factors.npz") as numbers:
        images, expected, blurred = numbers["images"], numbers["blur"], numbers["blur_gauss_sigma_1_3"]
    np.testing.assert_allclose([sharpness(image) for image in images], expected, rtol=0, atol=1e-6)
    scores = [sharpness(cv2.GaussianBlur(image, (0, 0), sigma)) for image in images for sigma in (1, 3)]
    np.testing.assert_allclose(scores, blurred, rtol=0, atol=1e-6)


def test_the_order_of_the_channels_matters() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:, 0] = 255
    assert sharpness(image) > 1.5 * sharpness(image[..., ::-1]), "red is lighter than blue"


@pytest.mark.parametrize(("score", "level"), [(0, 0), (0.3499, 0), (0.35, 1), (0.6999, 1), (0.7, 2), (3, 2)])
def test_blur_class(score: float, level: int) -> None:
    assert blur_class(score) == level
