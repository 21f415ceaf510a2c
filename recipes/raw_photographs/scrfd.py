"""SCRFD (Guo et al., 2021, arXiv 2105.04714), whose points are the reference of the data folder, by onnxruntime."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.face_points import MIRRORED

CANDIDATE = 0.3  # score
STRIDES = (8, 16, 32)  # pixels of a cell, of each level
ANCHORS = 2  # of each cell


@cache
def open_scrfd(data: Path) -> Any:
    """The session of the detector in the data folder, on one thread; one for each process."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("SCRFD needs onnxruntime: pip install onnxruntime") from error
    file = data / "detector" / "scrfd_2.5g_bnkps.onnx"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; the reference's detector of docs/data.md was expected")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options)


def scrfd_points(session: Any, rgb: np.ndarray, padding: float, side: int, mirrored: bool) -> list[np.ndarray]:
    """The five points (5, 2) of each candidate in an RGB uint8 picture, the surest first.

    SCRFD sees the picture with a black border (a share of its longer side, at each edge), brought to a longer side of
    `side` pixels, a multiple of 32.
    """
    margin = round(padding * max(rgb.shape[:2]))
    padded = cv2.copyMakeBorder(rgb, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    padded = np.ascontiguousarray(padded[:, ::-1]) if mirrored else padded
    scale = side / max(padded.shape[:2])
    height, width = (round(n * scale) for n in padded.shape[:2])
    picture = np.zeros((side, side, 3), np.float32)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture[:height, :width] = cv2.resize(padded, (width, height), interpolation=way)
    outputs = session.run(None, {session.get_inputs()[0].name: ((picture - 127.5) / 128).transpose(2, 0, 1)[None]})
    found = []
    for level, stride in enumerate(STRIDES):
        scores, offsets = outputs[level].ravel(), outputs[level + 6].reshape(-1, 5, 2)
        for cell in np.flatnonzero(scores > CANDIDATE):
            row, column = divmod(int(cell) // ANCHORS, side // stride)
            points = ((column, row) + offsets[cell] + 0.5 / stride) * stride / scale - 0.5
            if mirrored:
                points = ((padded.shape[1] - 1, 0) + points * (-1, 1))[MIRRORED]
            found.append((float(scores[cell]), points - margin))
    return [points for _, points in sorted(found, key=lambda one: -one[0])]
