"""dlib's landmarks of aligned crops, found once; yaw, and how far a mouth is open."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from faces.dlib_models import find_landmarks
from faces.pose import euler_angles
from faces.reader import read_image
from model.files import replacing

SIZE = 112
SHUT, OPEN = 0.28, 0.34  # mouth openings: to SHUT a smile is an everyday one, from OPEN it is open laughter
UPSAMPLE = 1  # a face fills its crop, so it need not be doubled twice
INNER_LIPS = ((61, 67), (62, 66), (63, 65))  # upper and lower landmarks that face each other
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)


def landmarks_of(paths: Sequence[Path], cache: Path) -> dict[str, np.ndarray | None]:
    """The landmarks (68, 2) of each crop, None where dlib finds no face. Keys: the path from the folder faces/ or
    factors/ on. What was found is kept in the file `cache`."""
    keys = [key_of(path) for path in paths]
    known: dict[str, np.ndarray] = {}
    if cache.is_file():
        with np.load(cache) as stored:
            known = dict(zip(stored["paths"].tolist(), stored["points"], strict=True))
    new = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    if new:
        with ProcessPoolExecutor() as pool:
            found = pool.map(_find, new.values(), chunksize=32)
            known |= dict(zip(new, tqdm(found, total=len(new), desc="landmarks", unit="image"), strict=True))
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, paths=np.array(list(known)), points=np.array(list(known.values()), np.float32))
    return {key: None if np.isnan(known[key]).any() else known[key].astype(np.float64) for key in keys}


def yaw_of(paths: Sequence[Path], cache: Path) -> dict[str, float | None]:
    """dlib's yaw in degrees of each crop, None where it finds no face; keys and cache as in `landmarks_of`."""
    found = landmarks_of(paths, cache).items()
    return {key: None if points is None else euler_angles(points, SIZE, SIZE)[1] for key, points in found}


def key_of(path: Path) -> str:
    """The part of a path that begins with faces or factors."""
    parts = path.parts
    start = max(parts.index(name) for name in ("faces", "factors") if name in parts)
    return "/".join(parts[start:])


def mouth_opening(points: np.ndarray) -> float:
    """The gap between the inner lips, in distances between the eyes' centres: 0 for closed lips."""
    gap = np.mean([np.linalg.norm(points[upper] - points[lower]) for upper, lower in INNER_LIPS])
    return float(gap / np.linalg.norm(points[RIGHT_EYE].mean(axis=0) - points[LEFT_EYE].mean(axis=0)))


def _find(path: Path) -> np.ndarray:
    """(68, 2), NaN without a face."""
    points = find_landmarks(read_image(path), UPSAMPLE)
    return np.full((68, 2), np.nan) if points is None else points
