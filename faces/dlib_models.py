"""dlib's face detector and landmark predictor. Each process loads them once, when they are first needed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

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
