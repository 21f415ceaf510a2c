"""Sharpness of a face crop, measured as in CLIB-FIQA's published labels. There it is called CPBD, which is another
measure."""

from __future__ import annotations

import cv2
import numpy as np

CLEAR, BLURRY = 0.7, 0.35   # minimum sharpness of the two better blur classes


def sharpness(rgb: np.ndarray) -> float:
    """0.01 x the mean gradient magnitude (3x3 Sobel) of the lightness L (0 to 255) of Lab, over the whole uint8 image
    (H, W, 3). About 0.2 to 1 for a 112x112 face. It depends on the scale: an image enlarged to
    twice the size has about half the value."""
    lightness = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[..., 0]
    return 0.01 * float(np.hypot(cv2.Sobel(lightness, cv2.CV_64F, 1, 0), cv2.Sobel(lightness, cv2.CV_64F, 0, 1)).mean())


def blur_class(score: float) -> int:
    """The level of the blur axis: 0 hazy, 1 blurry, 2 clear."""
    return int(score >= BLURRY) + int(score >= CLEAR)
