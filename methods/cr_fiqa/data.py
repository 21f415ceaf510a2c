"""The training data of CR-FIQA: folders of identities, or MXNet's RecordIO; a class is an identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faces.listing import list_images
from faces.reader import read_image
from labels.anchors import identity_of
from methods.cr_fiqa.recordio import RecordReader, read_samples
from model.files import names_in
from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache, Images, keeps, read_images


@dataclass
class Identities:
    """N images of C identities: `classes` are the identities' names in the order of their class, `labels` int64 (N,)
    the class of each image."""

    images: Images
    classes: list[str]
    labels: Tensor

    def to(self, device: torch.device) -> Identities:
        """With the labels on the device, where every step looks them up; the images stay."""
        return Identities(self.images, self.classes, self.labels.to(device))


def read_identities(
    folders: Sequence[str],
    preprocessing: Preprocessing,
    *,
    names: Sequence[str] = (),
    min_images: int = 1,
    cache: Cache = "auto",
    workers: int = 0,
) -> tuple[Identities, list[tuple[str, str]]]:
    """The faces of folders with a sub-folder for each identity, or of one folder with train.rec, and the
    (path, status) of the images left out.

    Classes are in lexicographic order of the sub-folders, and in the order of the labels of a record file. `names` are
    files that list the identities to take. With the cache every image is read now, and bad ones are left out; without
    it another image of its batch replaces a bad one. Raises ValueError when identities are missing or too few.
    """
    source = _read_record_file(folders) if (Path(folders[0]) / "train.rec").is_file() else _read_folders(folders)
    rows = np.flatnonzero(_wanted(source, names, min_images)).tolist()
    bad: dict[int, str] = {}
    if keeps(cache, len(rows), preprocessing.size):
        images, bad = read_images(source.paths, rows, preprocessing, "yes", workers, source.read)
    else:
        images = Images(source.paths, torch.tensor(rows), preprocessing, workers, None, source.read, replace_bad=True)
    used = np.unique(source.labels[images.usable.numpy()])
    if len(used) < 2 or len(images.usable) < 2 * processes.count():
        raise ValueError(
            f"--data {','.join(folders)}: {len(images.usable)} readable images of {len(used)} identities are left of "
            f"{len(source.names)} identities; expected sub-folders with images of two identities or more, or train.rec"
        )
    classes = np.full(len(source.names), -1)
    classes[used] = np.arange(len(used))
    labels = torch.from_numpy(classes[source.labels])
    skipped = [(source.paths[row], status) for row, status in bad.items()]
    return Identities(images, [source.names[label] for label in used.tolist()], labels), skipped


@dataclass(frozen=True)
class _Source:
    """All images that are there: N paths for `read`, the label (N,) of each, and the name of each label."""

    paths: Sequence[str]
    labels: NDArray[np.int64]
    names: list[str]
    read: Callable[[str], np.ndarray]


def _read_folders(folders: Sequence[str]) -> _Source:
    found = [(identity_of(path.relative_to(folder).as_posix()), str(path)) for folder in folders
             for path in list_images(folder)]  # fmt: skip
    found = [(identity, path) for identity, path in found if identity]  # the others belong to nobody
    names, labels = np.unique([identity for identity, _ in found], return_inverse=True)
    return _Source([path for _, path in found], labels, names.tolist(), read_image)


def _read_record_file(folders: Sequence[str]) -> _Source:
    if len(folders) > 1:
        raise ValueError("--data takes one folder with train.rec, or several folders of identities, not both")
    path = Path(folders[0]) / "train.rec"
    samples = read_samples(path)
    numbers, labels = np.unique(samples.labels, return_inverse=True)
    return _Source(samples, labels, [str(number) for number in numbers], RecordReader(str(path)))


def _wanted(source: _Source, files: Sequence[str], min_images: int) -> NDArray[np.bool_]:
    """Which images (N,) are of an identity that the files name, if there are any, and that has enough images."""
    wanted = np.bincount(source.labels, minlength=len(source.names)) >= min_images
    if files:
        named = names_in(files)
        missing = sorted(named.difference(source.names))
        if missing:
            raise ValueError(f"--identities: {len(missing)} identities have no images in --data, as {missing[0]}")
        wanted &= np.isin(source.names, list(named))
    return wanted[source.labels]
