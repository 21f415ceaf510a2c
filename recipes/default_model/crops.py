"""The faces of the default model: the identities that train it, those that measure it, and their crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from faces.listing import list_images
from faces.reader import read_image

NEVER_TRAIN = {"7218"}  # a CelebA identity who is also an LFW test identity (docs/data.md)


def identities(data: Path, held_out: bool = False) -> list[str]:
    """LFW's training identities; every tenth is held out from training, to choose by. Test identities are not here."""
    names = split(data, "train")
    return [name for index, name in enumerate(names) if (index % 10 == 9) == held_out]


def split(data: Path, name: str) -> list[str]:
    """LFW's identities of a split, `train` or `test`, sorted. Raises ValueError where there is no data folder."""
    file = data_file(data, f"splits/lfw_{name}_identities.txt")
    return sorted(file.read_text(encoding="utf-8").split())


def data_file(data: Path, name: str) -> Path:
    """A file of the data folder. Raises ValueError, which says what to do, where it is missing."""
    if not (data / name).is_file():
        raise ValueError(f"{data / name}: no such file; --data must name the data folder that docs/data.md describes")
    return data / name


def crop_paths(data: Path, names: list[str]) -> list[Path]:
    """All aligned crops of these LFW identities, sorted."""
    return [path for name in names for path in list_images(data / "faces" / "lfw" / name)]


def celeba_paths(data: Path) -> list[Path]:
    """The CelebA crops that may train, sorted: without the LFW test identity among them, and without probable label
    errors and duplicates."""
    lines = data_file(data, "faces/celeba_suspects.txt").read_text(encoding="utf-8").splitlines()
    suspects = {line.split()[0] for line in lines if line}
    paths = [path for path in list_images(data / "faces" / "celeba") if path.parent.name not in NEVER_TRAIN]
    return [path for path in paths if path.relative_to(data).as_posix() not in suspects]


def lfw_test_paths(data: Path) -> list[Path]:
    """All aligned crops of LFW's test identities, which nothing learns from, sorted."""
    return crop_paths(data, split(data, "test"))


def first_of_each(paths: list[Path]) -> list[Path]:
    """The first crop of each identity, of paths sorted by identity."""
    return [path for i, path in enumerate(paths) if i == 0 or path.parent != paths[i - 1].parent]


def read_crops(paths: list[Path]) -> np.ndarray:
    """RGB uint8 (N, 112, 112, 3): about 38 KB a crop."""
    return np.stack([read_image(path) for path in paths])
