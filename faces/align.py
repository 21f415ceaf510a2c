"""Finding the face in a picture and bringing it to the template of ArcFace (Deng et al., CVPR 2019)."""

from __future__ import annotations

import cv2
import numpy as np

from .dlib_models import face_detector, landmarks_in
from .reader import ImageError

SIZE = 112
# Where eyes, nose tip and mouth corners (left to right in the picture) lie in a 112x112 crop: x, y in pixels.
ARCFACE_POINTS = np.array([
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
])
# Longest side at which dlib looks for faces: it sees those of 80 pixels and more, so each step finds faces of half the
# size, at four times the cost. A face found early is larger than any that only a later step would show.
DETECTION_SIDES = (320, 640, 1280, 2560)
LARGEST_ENLARGEMENT = 4.0
SURE = 0.5   # dlib's score from which a detection is hardly ever wrong; doubtful ones count only where none is sure


def align_face(rgb: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The largest face of an RGB uint8 image (H, W, 3), turned and scaled to the ArcFace template: uint8
    (size, size, 3), black where the picture ends. Raises ImageError with the status no_face when dlib finds none."""
    return warp(rgb, five_points(rgb), ARCFACE_POINTS * (size / SIZE), size)


def is_aligned(rgb: np.ndarray) -> bool:
    """Whether the image (H, W, 3) is taken as an aligned crop: whether it is 112x112."""
    return rgb.shape[:2] == (SIZE, SIZE)


def five_points(rgb: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) in pixels of the largest face. Raises ImageError (no_face)."""
    points = largest_face(rgb)
    eyes = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    return np.array([*eyes, points[30], points[48], points[54]])


def largest_face(rgb: np.ndarray) -> np.ndarray:
    """The 68 landmarks (68, 2), x and y in pixels, of the largest face. Raises ImageError (no_face)."""
    longest = max(rgb.shape[:2])
    for side in DETECTION_SIDES:
        scale = side / longest
        if scale > LARGEST_ENLARGEMENT and side > DETECTION_SIDES[0]:
            break
        picture = _resize(rgb, scale)
        boxes, scores, _ = face_detector().run(picture, 0)
        if boxes:
            sure = [box for box, score in zip(boxes, scores, strict=True) if score >= SURE] or boxes
            return _rescale(landmarks_in(picture, max(sure, key=lambda box: box.area())), 1 / scale)
    raise ImageError("no_face", "no face was found in the picture; an aligned crop of 112x112 pixels is taken as it is")


def similarity_transform(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The turn, scale and shift (2, 3) that brings points (N, 2) nearest to a template (N, 2) in least squares.

    Umeyama (1991). In the plane, with x + iy as one number, it is the line z = a w + b: a turns and scales, b shifts.
    """
    w, z = points @ (1, 1j), template @ (1, 1j)
    spread = w - w.mean()
    assert np.any(spread), "a similarity needs at least two different points"
    a = np.vdot(spread, z) / np.vdot(spread, spread)
    b = z.mean() - a * w.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(rgb: np.ndarray, points: np.ndarray, template: np.ndarray, size: int) -> np.ndarray:
    """Bring points (N, 2) of an image to the template in a crop (size, size, 3), bilinear, black outside.

    A face of more than twice the crop's scale is first shrunk by area: sampled as it is, it would alias.
    """
    matrix = similarity_transform(points, template)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        rgb, points = _resize(rgb, scale), _rescale(points, scale)
        matrix = similarity_transform(points, template)
    return cv2.warpAffine(rgb, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def _resize(rgb: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return rgb
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _rescale(points: np.ndarray, scale: float) -> np.ndarray:
    return (points + 0.5) * scale - 0.5   # pixel centres have whole coordinates, the picture starts at -0.5
