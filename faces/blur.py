"""Sharpness of a face crop as CLIB-FIQA's published labels measure it (there under the name CPBD, which it is not)."""

from __future__ import annotations

import cv2
import numpy as np

CLEAR, BLURRY = 0.7, 0.35   # least sharpness of the upper two blur classes


def sharpness(rgb: np.ndarray) -> float:
    """0.01 x the mean gradient magnitude (3x3 Sobel) of the lightness L (0 to 255) of Lab, over the whole uint8 image
    (H, W, 3). About 0.2 to 1 for a 112x112 face; it depends on the scale: twice the size has about half of it."""
    lightness = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[..., 0]
    return 0.01 * float(np.hypot(cv2.Sobel(lightness, cv2.CV_64F, 1, 0), cv2.Sobel(lightness, cv2.CV_64F, 0, 1)).mean())


def blur_class(score: float) -> int:
    """The level of the blur axis: 0 hazy, 1 blurry, 2 clear."""
    return int(score >= BLURRY) + int(score >= CLEAR)
