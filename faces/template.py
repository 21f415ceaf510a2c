"""The template of ArcFace (Deng et al., CVPR 2019), and how a face is brought to it by its five points."""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 112
# Where eyes, nose tip and mouth corners (left to right in the picture) lie in a 112x112 crop: x, y in pixels.
ARCFACE_POINTS = np.array([
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
])


def similarity_transform(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The similarity transform, a matrix (2, 3), that maps points (N, 2) to a template (N, 2) with least squares.

    Umeyama (1991). With a point as the complex number x + iy it is z = a w + b: a rotates and scales, b translates.
    """
    w, z = points @ (1, 1j), template @ (1, 1j)
    spread = w - w.mean()
    assert np.any(spread), "a similarity needs at least two different points"
    a = np.vdot(spread, z) / np.vdot(spread, spread)
    b = z.mean() - a * w.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def mapped(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (N, 2) mapped by a matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def mapped_back(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The points (N, 2) that a matrix (2, 3) maps to these."""
    return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def off_template(points: np.ndarray) -> float:
    """How far, in pixels of the template, the alignment by these points (5, 2) moves the template's points: the mean.

    It is 0 for points whose best similarity is none at all, such as those of an aligned profile.
    """
    moved = mapped_back(ARCFACE_POINTS, similarity_transform(points, ARCFACE_POINTS))
    return float(np.linalg.norm(moved - ARCFACE_POINTS, axis=1).mean())


def warp(rgb: np.ndarray, points: np.ndarray, template: np.ndarray, size: int) -> np.ndarray:
    """Map points (N, 2) of an image to the template in a crop (size, size, 3): bilinear, black outside the image.

    A face of more than twice the crop's scale is first reduced by averaging areas, to avoid aliasing.
    """
    return warped(rgb, similarity_transform(points, template), size)


def scale_of(matrix: np.ndarray) -> float:
    """How many pixels of the target a similarity (2, 3) makes of one."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def resized(rgb: np.ndarray, scale: float) -> np.ndarray:
    """An image, enlarged bilinearly or reduced by averaging areas; at least one pixel on each side."""
    if scale == 1:
        return rgb
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def rescaled(points: np.ndarray, scale: float) -> np.ndarray:
    """Where points of an image lie in its `resized` version."""
    return (points + 0.5) * scale - 0.5   # pixel centres have whole coordinates, the picture starts at -0.5


def warped(rgb: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """What a similarity (2, 3) fills from an image: (size, size, 3), bilinear. `border` of OpenCV says what lies beyond
    the image: black by default. An image of more than twice the scale is first reduced by averaging areas."""
    scale = scale_of(matrix)
    if scale < 0.5:
        rgb = resized(rgb, scale)
        linear = matrix[:, :2] / scale
        matrix = np.column_stack([linear, matrix[:, 2] + linear @ np.full(2, 0.5 - 0.5 * scale)])
    return cv2.warpAffine(rgb, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
