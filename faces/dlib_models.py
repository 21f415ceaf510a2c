"""dlib's face detector and landmark predictor. Each process loads them once, when they are first needed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .reader import ImageError
from .template import rescaled, resized

# The picture is searched at these lengths of its longest side, until a face is found. dlib finds faces from 80 pixels,
# so each step finds faces of half the size, at four times the cost. A face is larger than all that need a later step.
DETECTION_SIDES = (320, 640, 1280, 2560)
LARGEST_ENLARGEMENT = 4.0
SURE = 0.5   # detections with this score of dlib or more are almost never wrong; others count only without such a one
LANDMARKS_FILE = "shape_predictor_68_face_landmarks.dat"
LONGEST_SIDE = 2560  # pixels; a larger picture would take minutes and gigabytes


def dlib_file(name: str) -> Path:
    """Where the pip package face_recognition_models keeps a model file of dlib. The package is located, not imported:
    importing it fails with current setuptools. Raises FileNotFoundError, saying what to install."""
    package = find_spec("face_recognition_models")
    path = Path(package.origin).parent / "models" / name if package and package.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"dlib's {name} was not found: pip install face_recognition_models, or give its path")
    return path


@cache
def face_detector() -> Any:
    """dlib's frontal face detector (HOG): call it with an RGB image and how often to double its size first."""
    return import_dlib().get_frontal_face_detector()


@cache
def landmark_predictor(path: str | Path | None = None) -> Any:
    """dlib's 68-point predictor, from `path` or from the package face_recognition_models."""
    file = Path(path) if path else dlib_file(LANDMARKS_FILE)
    if not file.is_file():
        raise FileNotFoundError(f"the landmark file {file} does not exist; dlib's {LANDMARKS_FILE} was expected")
    return import_dlib().shape_predictor(str(file))


def find_landmarks(rgb: np.ndarray, upsample: int = 2, predictor: str | Path | None = None) -> np.ndarray | None:
    """The landmarks (68, 2) of the first face that dlib's detector lists, or None when it finds none.

    The picture is doubled `upsample` times, so that faces from 80 / 2**upsample pixels are found. The published code
    doubles crops of 112x112 twice. A picture whose longest side has more than 640 pixels is doubled less often.
    """
    while upsample and max(rgb.shape) << upsample > LONGEST_SIDE:
        upsample -= 1
    boxes = face_detector()(rgb, upsample)
    return landmarks_in(rgb, boxes[0], predictor) if boxes else None


def largest_face(rgb: np.ndarray) -> np.ndarray:
    """The 68 landmarks (68, 2), x and y in pixels, of the largest face that dlib finds. Raises ImageError (no_face)."""
    longest = max(rgb.shape[:2])
    for side in DETECTION_SIDES:
        scale = side / longest
        if scale > LARGEST_ENLARGEMENT and side > DETECTION_SIDES[0]:
            break
        picture = resized(rgb, scale)
        boxes, scores, _ = face_detector().run(picture, 0)
        if boxes:
            sure = [box for box, score in zip(boxes, scores, strict=True) if score >= SURE] or boxes
            return rescaled(landmarks_in(picture, max(sure, key=lambda box: box.area())), 1 / scale)
    raise ImageError("no_face", "dlib found no face in the picture")


def five_of(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) of 68 landmarks (68, 2)."""
    eyes = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    return np.array([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def landmarks_in(rgb: np.ndarray, box: Any, path: str | Path | None = None) -> np.ndarray:
    """The 68 landmarks (68, 2), x and y in pixels, of the face in a box of dlib's."""
    shape = landmark_predictor(path)(rgb, box)
    return np.array([(point.x, point.y) for point in shape.parts()], np.float64)


def import_dlib() -> Any:
    """The module dlib. Raises ImportError, saying how to install it."""
    try:
        import dlib
    except ImportError as error:
        raise ImportError("faces are found with dlib: pip install dlib-bin") from error
    return dlib
