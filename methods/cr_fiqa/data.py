"""The training data of CR-FIQA: a folder of identities, with each image the class of its identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faces.anchors import identity_of
from faces.listing import list_images
from model.preprocessing import Preprocessing
from training.images import Cache, Images, read_images
from training.parallel import processes


@dataclass
class Identities:
    """N images of C identities: `classes` are the identities' names in the order of their class, `labels` int64 (N,)
    the class of each image."""

    images: Images
    classes: list[str]
    labels: Tensor


def read_identities(
    folders: Sequence[str],
    preprocessing: Preprocessing,
    *,
    names: Sequence[str] = (),
    min_images: int = 1,
    cache: Cache = "auto",
    workers: int = 0,
) -> tuple[Identities, list[tuple[str, str]]]:
    """The faces of folders with a sub-folder for each identity, and the (path, status) of the images left out.

    Classes are in lexicographic order of the sub-folders. `names` are files that list the identities to take. With
    the cache every image is read now, and bad ones are left out; without it a bad image gives way to another of its
    batch. Raises ValueError when identities are missing, ambiguous, or too few are left.
    """
    found = _named([(identity, path) for folder in folders for identity, path in _list(folder)], names)
    sizes = Counter(identity for identity, _ in found)
    found = [(identity, path) for identity, path in found if sizes[identity] >= min_images]
    paths = [path for _, path in found]
    images, bad = read_images(paths, range(len(paths)), preprocessing, cache, workers)
    usable = [found[row][0] for row in images.usable.tolist()]
    classes = sorted(set(usable))
    if len(classes) < 2 or len(usable) < 2 * processes():
        raise ValueError(
            f"--data {','.join(folders)}: {len(usable)} readable images of {len(classes)} identities are left of "
            f"{len(sizes)} identities; expected sub-folders with images of two identities or more"
        )
    index = {identity: number for number, identity in enumerate(classes)}
    labels = torch.tensor([index.get(identity, -1) for identity, _ in found])
    return Identities(images, classes, labels), [(paths[row], status) for row, status in bad.items()]


def _list(folder: str) -> list[tuple[str, str]]:
    """(identity, path) of each image; those that lie in the folder itself belong to nobody."""
    pairs = [(identity_of(path.relative_to(folder).as_posix()), str(path)) for path in list_images(folder)]
    return [(identity, path) for identity, path in pairs if identity]


def _named(found: list[tuple[str, str]], files: Sequence[str]) -> list[tuple[str, str]]:
    if not files:
        return found
    lines = [line.strip() for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
    wanted = {line for line in lines if line}
    missing = sorted(wanted - {identity for identity, _ in found})
    if missing:
        raise ValueError(f"--identities: {len(missing)} identities have no images in --data, {missing[0]} for one")
    return [(identity, path) for identity, path in found if identity in wanted]
