"""The training data of eDifFIQA: images with their quality, the teacher's embedding, and the centre of their class."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.embeddings import read_embeddings
from evaluation.names import match_names
from model.files import open_text
from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache, Images, read_images

COLUMNS = ["path", "score", "class"]
CHUNK = 4096  # embeddings that are checked at a time


@dataclass
class TeacherItems:
    """N images in ascending order of quality. `train` and `validation` hold the same images, of which other rows are
    usable; `labels` float32 (N,) in [0, 1] and `classes` int64 (N,) are of all rows, `centres` float32 (C, D) of all
    classes."""

    train: Images
    validation: Images
    labels: Tensor
    classes: Tensor
    centres: Tensor
    teacher_rows: NDArray[np.int64]  # (N,): where each image stands in `teacher`
    teacher: NDArray[np.floating]  # (M, D), perhaps memory-mapped

    def targets(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (B,), the teacher's embeddings (B, D) and class centres (B, D) of these rows, float32."""
        embeddings = np.asarray(self.teacher[self.teacher_rows[rows.numpy()]], np.float32)
        return self.labels[rows], torch.from_numpy(embeddings), self.centres[self.classes[rows]]

    def fingerprint(self) -> str:
        """A hash of the images' names, labels and classes, wherever they lie."""
        rows = torch.cat([self.train.usable, self.validation.usable]).tolist()
        lines = (f"{Path(self.train.paths[row]).name} {self.labels[row]:.6f} {self.classes[row]}" for row in rows)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


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

    The scores become labels in [0, 1] (minimum and maximum of the images that are there). Validation takes each
    `validation_every`th image in the order of the scores, the first included; equal scores keep the order of the file.
    Raises ValueError for files that break the format or do not fit together, and when too few images are left.
    """
    folder = Path(folder)
    names, scores, classes = read_table(folder / "items.tsv")
    centres = _read_centres(folder / "centres.npz")
    if classes.max() >= len(centres):
        raise ValueError(f"{folder}: items.tsv has class {classes.max()}, centres.npz has {len(centres)} classes")
    embeddings = read_embeddings(teacher)
    teacher_rows = match_names(names, embeddings.names, str(teacher))
    if embeddings.rows.shape[1] != centres.shape[1]:
        raise ValueError(
            f"{teacher} holds embeddings of {embeddings.rows.shape[1]} numbers, {folder}/centres.npz centres of "
            f"{centres.shape[1]}; prepare the items with the embeddings of this teacher"
        )
    _require_directions(embeddings.rows, teacher_rows, names, teacher)

    order = np.argsort(scores, kind="stable")
    paths = [str(Path(root) / names[row]) for row in order]
    images, bad = read_images(paths, range(len(paths)), preprocessing, cache, workers)
    usable = images.usable
    labels = torch.from_numpy(_normalised(scores[order], usable.numpy(), folder / "items.tsv")).float()
    validates = torch.zeros(len(usable), dtype=torch.bool)
    validates[::validation_every] = True
    if (~validates).sum() < 2 * processes.count():
        raise ValueError(f"{len(usable)} of {len(paths)} images below {root} are readable: too few to train on")
    items = TeacherItems(
        train=replace(images, usable=usable[~validates]),
        validation=replace(images, usable=usable[validates]),
        labels=labels,
        classes=torch.from_numpy(classes[order]),
        centres=torch.from_numpy(centres),
        teacher_rows=teacher_rows[order],
        teacher=embeddings.rows,
    )
    return items, [(paths[row], status) for row, status in bad.items()]


def read_table(path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Names, scores and classes of items.tsv. Raises ValueError, with the line, for a table that breaks the format."""
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with `python -m methods.ediffiqa.prepare`")
    with open_text(path) as file:
        rows = list(_rows(path, csv.reader(file, delimiter="\t")))
    if not rows:
        raise ValueError(f"{path} has no rows")
    names, scores, classes = zip(*rows, strict=True)
    return list(names), np.array(scores), np.array(classes)


def _rows(path: Path, lines: Iterator[list[str]]) -> Iterator[tuple[str, float, int]]:
    header = next(lines, [])
    if header != COLUMNS:
        raise ValueError(f"{path}: the tab-separated header {' '.join(COLUMNS)} was expected, not {' '.join(header)}")
    for number, cells in enumerate(lines, 2):
        try:
            name, score, class_index = cells
            row = name, float(score), int(class_index)
        except ValueError:
            raise ValueError(f"{path}, line {number}: a path, a score and a class were expected, not {cells}") from None
        if not math.isfinite(row[1]) or row[2] < 0:
            raise ValueError(f"{path}, line {number}: a finite score and a class from 0 were expected, not {cells[1:]}")
        yield row


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


def _require_directions(
    rows: NDArray[np.floating], used: NDArray[np.int64], names: list[str], source: str | Path
) -> None:
    for start in range(0, len(used), CHUNK):
        norms = np.linalg.norm(np.asarray(rows[used[start : start + CHUNK]], np.float64), axis=1)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if bad.size:
            raise ValueError(f"{source}: the embedding of {names[start + bad[0]]} is zero or not finite")


def _normalised(scores: NDArray[np.float64], usable: NDArray[np.int64], source: Path) -> NDArray[np.float64]:
    """The scores with the minimum of the usable ones at 0 and their maximum at 1."""
    lowest, highest = (scores[usable].min(), scores[usable].max()) if len(usable) else (0.0, 0.0)
    if highest <= lowest:
        raise ValueError(f"{source}: scores that differ were expected; {len(usable)} readable images have {lowest}")
    return ((scores - lowest) / (highest - lowest)).clip(0, 1)
