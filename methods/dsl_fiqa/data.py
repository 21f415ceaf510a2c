"""Sets of rated face photographs in the published layout (GFIQA, CGFIQA), and crops of them for training.

    FOLDER/label.json             {"Image": [name, ...], "MOS": [number, ...]}
    FOLDER/img/NAME               photographs, 512x512 in the published sets
    FOLDER/landmark/STEM.npy      (P, 2) landmarks, x and y in pixels
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from faces.listing import list_images
from faces.random_crops import CROPS, crops_for, cut, fit, landmarks_for, mirrored, read_landmarks
from faces.reader import read_image
from faces.workers import as_it_is, load_batches
from model.dsl_fiqa import DslFiqa, DslFiqaShape
from model.files import names_in
from training import processes
from training.images import CACHE_BYTES, Cache, mixed_seed

CHUNK = 16  # pictures that travel together from the readers
LISTED = 3  # names in a message


@dataclass(frozen=True)
class RatedSet:
    """N photographs: their paths, mean opinion scores as stored (N,), and landmark files, where the set has them."""

    folder: Path
    paths: list[str]
    scores: np.ndarray
    landmarks: list[str] | None

    @property
    def names(self) -> list[str]:
        """As in label.json."""
        return [Path(path).name for path in self.paths]


class Batch(NamedTuple):
    """`rows` (B,) of the set in the whole batch; crops uint8 (b, S, S, 3) and landmarks of this process's share."""

    rows: Tensor
    crops: Tensor
    landmarks: Tensor


class Picture(NamedTuple):
    """A photograph as the crops are taken of it, uint8 (H, W, 3), and its landmarks (P, 2) in the same pixels."""

    image: np.ndarray
    points: np.ndarray | None


def photographs(folders: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """All images below the folders, but for those whose own folder is named in one of the files `without`."""
    names = names_in(without)
    return [str(path) for folder in folders for path in list_images(folder) if path.parent.name not in names]


def read_rated_set(folder: str | Path, landmarks: bool) -> RatedSet:
    """The set in a folder of the published layout; with `landmarks`, each picture needs its landmark file.

    Raises ValueError, in one line, for a label.json that does not fit the pictures.
    """
    folder = Path(folder)
    names, scores = _read_labels(folder / "label.json")
    present = {str(path.relative_to(folder / "img")) for path in list_images(folder / "img")}
    if absent := [name for name in names if name not in present]:
        raise ValueError(f"{folder}/label.json names {_some(absent)}, not in {folder / 'img'}: add or take out")
    if unrated := sorted(present.difference(names)):
        raise ValueError(f"{folder}/label.json has no score of {_some(unrated)} of {folder / 'img'}: add or take out")
    files = [str(folder / "landmark" / f"{Path(name).stem}.npy") for name in names] if landmarks else None
    if missing := [file for file in files or () if not Path(file).is_file()]:
        raise ValueError(
            f"{_some([Path(file).name for file in missing])} missing in {folder / 'landmark'}: add, or train with "
            "--landmarks none"
        )
    return RatedSet(folder, [str(folder / "img" / name) for name in names], np.array(scores), files)


def normalised(scores: np.ndarray) -> np.ndarray:
    """Least to 0 and greatest to 1, as the published training takes the scores of a set."""
    low, high = scores.min(), scores.max()
    if low == high:
        raise ValueError(f"all scores of the set are {low}: at least two different ones are needed")
    return (scores - low) / (high - low)


@dataclass
class RatedPictures:
    """The photographs of a set, read once and kept or read anew each epoch. `usable` are the rows that can be read."""

    rated: RatedSet
    shape: DslFiqaShape
    workers: int
    usable: list[int]
    kept: dict[int, Picture]

    def epoch(self, batch_size: int, seed: Sequence[int], flip_share: float) -> Iterator[Batch]:
        """All usable rows once, in the order, with the crops and the flips of this seed. The batches differ by one
        picture at most."""
        generator = torch.Generator().manual_seed(mixed_seed(seed))
        order = torch.tensor(self.usable)[torch.randperm(len(self.usable), generator=generator)]
        batches = order.tensor_split(self.steps(batch_size))
        shares = [processes.share(rows) for rows in batches]
        pictures = self._pictures([row for rows in shares for row in rows.tolist()])
        for rows, share in zip(batches, shares, strict=True):
            crops, landmarks = zip(
                *(self._random_crop(next(pictures), (*seed, row), flip_share) for row in share.tolist()), strict=True
            )
            yield Batch(rows, torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(landmarks)))

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch: each process has a picture of every one."""
        return max(1, min(math.ceil(len(self.usable) / batch_size), len(self.usable) // processes.count()))

    def in_order(self, count: int = CROPS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Crops (K, S, S, 3) and their landmarks of each usable picture, as for its score; K is `count` mostly."""
        for picture in self._pictures(self.usable):
            yield crops_for(self.shape, picture.image, picture.points, count)

    def _random_crop(self, picture: Picture, seed: Sequence[int], flip_share: float) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        if rng.random() < flip_share:
            picture = Picture(*mirrored(*picture))
        size = self.shape.image_size
        height, width = picture.image.shape[:2]
        corner = rng.integers(0, (height - size + 1, width - size + 1))
        return cut(picture.image, corner[None], size)[0], landmarks_for(self.shape, picture.points, corner)

    def _pictures(self, rows: Sequence[int]) -> Iterator[Picture]:
        if self.kept:
            yield from (self.kept[row] for row in rows)
            return
        names = (str(row) for row in rows)
        read = partial(_read_picture, self.rated, self.shape.image_size)
        for picture in chain.from_iterable(load_batches(names, as_it_is, CHUNK, self.workers, read)):
            if picture.value is None:
                path = self.rated.paths[int(picture.path)]
                raise RuntimeError(f"{path} could be read when the run began: {picture.status} now")
            yield picture.value


def read_pictures(
    rated: RatedSet, shape: DslFiqaShape, cache: Cache, workers: int
) -> tuple[RatedPictures, dict[str, str]]:
    """The photographs of a set for a network of this shape, and the status of each file that cannot be read.

    Every one is read once, so that a bad one is found now. Raises ValueError for a landmark file of another picture.
    """
    read = partial(_read_picture, rated, shape.image_size)
    names = (str(row) for row in range(len(rated.paths)))
    usable, kept, bad, taken = [], {}, {}, 0
    for row, picture in enumerate(chain.from_iterable(load_batches(names, as_it_is, CHUNK, workers, read))):
        if picture.value is None:
            bad[rated.paths[row]] = picture.status
            continue
        usable.append(row)
        taken += picture.value.image.nbytes
        if cache == "yes" or (cache == "auto" and taken <= CACHE_BYTES):
            kept[row] = picture.value
    if not usable:
        raise ValueError(f"no picture of {rated.folder} can be read")
    if len(kept) < len(usable):
        kept = {}
    return RatedPictures(rated, shape, workers, usable, kept), bad


@torch.inference_mode()
def score_pictures(
    network: DslFiqa, pictures: RatedPictures, device: torch.device, dtype: torch.dtype, count: int = CROPS
) -> np.ndarray:
    """The score of each usable picture, float64 (U,): the mean over `count` crops, which are one batch."""
    scores = []
    for crops, landmarks in pictures.in_order(count):
        images = network.preprocessing.normalise(torch.from_numpy(crops).to(device))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = network(images, torch.from_numpy(landmarks).to(device))
        scores.append(found.double().mean().item())
    return np.array(scores)


def _read_labels(path: Path) -> tuple[list[str], list[float]]:
    try:
        labels: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: a set has label.json, img/ and landmark/") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    names, scores = (labels.get(key) if isinstance(labels, dict) else None for key in ("Image", "MOS"))
    if not isinstance(names, list) or not isinstance(scores, list):
        raise ValueError(f'{path} has not the form {{"Image": [name, ...], "MOS": [number, ...]}}')
    if len(names) != len(scores):
        raise ValueError(f"{path} has {len(names)} names and {len(scores)} scores: as many were expected")
    if not names:
        raise ValueError(f"{path} names no picture")
    for name, score in zip(names, scores, strict=True):
        number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if not number:
            raise ValueError(f"{path}: the MOS of {name} is {score!r}; a number was expected")
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is not the name of a file in img/")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path} names {_some(twice)} more than once")
    return names, scores


def _read_picture(rated: RatedSet, size: int, row: str) -> Any:
    image = read_image(rated.paths[int(row)])
    points = None if rated.landmarks is None else read_landmarks(rated.landmarks[int(row)], image)
    return Picture(*fit(image, points, size))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
