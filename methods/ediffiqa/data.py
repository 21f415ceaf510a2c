"""The training data of eDifFIQA: images with their quality, the teacher's embedding, and the centre of their class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.inputs import read_any_embeddings, read_tsv, take_rows
from evaluation.names import match_names
from methods.ediffiqa.prepare import COLUMNS
from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache
from training.scored import ScoredImages, read_scored_images
from training.state import fingerprint

CHUNK = 4096  # embeddings that are checked at a time


class TeacherBatch(NamedTuple):
    """This process's share of a batch of `total` images: RGB uint8 images (b, S, S, 3), labels (b,), the teacher's
    embeddings (b, D) and class centres (b, D), float32."""

    total: int
    images: Tensor
    labels: Tensor
    teacher: Tensor
    centres: Tensor


@dataclass
class TeacherItems(ScoredImages):
    """N images with the class (N,), int64, of each. `centres` float32 (C, D) are of all classes."""

    classes: Tensor
    centres: Tensor
    teacher_rows: NDArray[np.int64]  # (N,): where each image stands in `teacher`
    teacher: NDArray[np.floating]  # (M, D), perhaps memory-mapped

    def batches(self, batch_size: int, seed: Sequence[int]) -> Iterator[TeacherBatch]:
        """The training images once, in the order of this seed."""
        for batch in self.train.batches(batch_size, seed, flips=False):
            yield self._batch(batch.rows, batch.images)

    def validation_batches(self, batch_size: int) -> Iterator[TeacherBatch]:
        """The validation images in their order."""
        for rows, images in self.validation.in_order(batch_size):
            yield self._batch(rows, images)

    def _batch(self, rows: Tensor, images: Tensor) -> TeacherBatch:
        return TeacherBatch(len(rows), images, *self.targets(processes.share(rows)))

    def targets(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (B,), the teacher's embeddings (B, D) and class centres (B, D) of these rows, float32."""
        embeddings = np.asarray(self.teacher[self.teacher_rows[rows.numpy()]], np.float32)
        return self.labels[rows], torch.from_numpy(embeddings), self.centres[self.classes[rows]]

    def fingerprint(self) -> str:
        """A hash of the images' names, labels and classes, wherever they lie."""
        rows = torch.cat([self.train.usable, self.validation.usable]).tolist()
        names = (Path(self.train.paths[row]).name for row in rows)
        return fingerprint(
            f"{name} {self.labels[row]:.6f} {self.classes[row]}" for name, row in zip(names, rows, strict=True)
        )


def read_items(
    folder: str | Path,
    root: str | Path,
    teacher: str | Path,
    preprocessing: Preprocessing,
    *,
    validation_every: int = 10,
    cache: Cache = "auto",
    workers: int = 0,
) -> tuple[TeacherItems, list[tuple[str, str]]]:
    """Read items.tsv and centres.npz below `folder`, the images below `root` and the teacher's embeddings; and the
    (path, status) of the images left out.

    Labels and validation are those of `read_scored_images`. Raises ValueError for files that break the format or do not
    fit together, and when too few images are left.
    """
    folder = Path(folder)
    names, scores, classes = read_table(folder / "items.tsv")
    centres = _read_centres(folder / "centres.npz")
    if classes.max() >= len(centres):
        raise ValueError(f"{folder}: items.tsv has class {classes.max()}, centres.npz has {len(centres)} classes")
    embeddings = read_any_embeddings(teacher)
    teacher_rows = match_names(names, embeddings.names, str(teacher))
    if embeddings.rows.shape[1] != centres.shape[1]:
        raise ValueError(
            f"{teacher} holds embeddings of {embeddings.rows.shape[1]} numbers, {folder}/centres.npz centres of "
            f"{centres.shape[1]}; prepare the items with the embeddings of this teacher"
        )
    for start in range(0, len(teacher_rows), CHUNK):
        take_rows(embeddings, teacher, teacher_rows[start : start + CHUNK])

    paths, source = [str(Path(root) / name) for name in names], str(folder / "items.tsv")
    images, bad = read_scored_images(paths, scores, preprocessing, validation_every, cache, workers, source)
    items = TeacherItems(
        images.train,
        images.validation,
        images.labels,
        images.order,
        classes=torch.from_numpy(classes[images.order]),
        centres=torch.from_numpy(centres),
        teacher_rows=teacher_rows[images.order],
        teacher=embeddings.rows,
    )
    return items, bad


def read_table(path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Names, scores and classes of items.tsv. Raises ValueError for a table that breaks the format."""
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with `python -m methods.ediffiqa.prepare`")
    names, scores, classes = zip(*(_row(path, cells) for cells in read_tsv(path, COLUMNS)), strict=True)
    return list(names), np.array(scores), np.array(classes)


def _row(path: Path, cells: list[str]) -> tuple[str, float, int]:
    name, score, class_index = cells
    try:
        row = name, float(score), int(class_index)
    except ValueError:
        raise ValueError(f"{path}: a score and a class were expected for {name}, not {cells[1:]}") from None
    if not math.isfinite(row[1]) or row[2] < 0:
        raise ValueError(f"{path}: a finite score and a class from 0 were expected for {name}, not {cells[1:]}")
    return row


def _read_centres(path: Path) -> NDArray[np.float32]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            centres = archive["centres"].astype(np.float32)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; make it with `python -m methods.ediffiqa.prepare`") from None
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: an .npz with `centres` (classes, D) was expected ({error})") from None
    if centres.ndim != 2 or not np.isfinite(centres).all() or not centres.any(axis=1).all():
        raise ValueError(f"{path}: finite centres (classes, D) that are not zero were expected, found {centres.shape}")
    return centres
