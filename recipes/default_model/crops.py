"""The faces of the default model: the identities that train it, those that measure it, and their crops."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path

import numpy as np

from faces.listing import list_images
from faces.reader import read_image

OBLIQUE_ANGLE = 35.0  # degrees
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


def cfp_faces(data: Path) -> list[tuple[str, Path]]:
    """The crops of CFP, frontal and profile, each with the LFW training identity who is the same person, sorted."""
    train = set(split(data, "train"))
    with data_file(data, "faces/cfp_identities.tsv").open(newline="", encoding="utf-8") as file:
        names = {row["cfp"]: row["lfw"] for row in csv.DictReader(file, delimiter="\t") if row["lfw"] in train}
    return [(names[p.parent.name], p) for p in list_images(data / "faces" / "cfp") if p.parent.name in names]


def factor_rows(data: Path, name: str, held_out: bool | None) -> list[dict[str, str]]:
    """The rows of factors/NAME.tsv, with `path` relative to the data folder. Without those of the held-out subjects, or
    only those, or all (None). Held out from `expression_lfw` are LFW's test identities and every tenth training one."""
    with data_file(data, f"factors/{name}.tsv").open(newline="", encoding="utf-8") as file:
        rows = [row | {"path": normpath(f"factors/{row['path']}")} for row in csv.DictReader(file, delimiter="\t")]
    if held_out is None:
        return rows
    if name == "expression_lfw":
        train = set(identities(data))
        return [row for row in rows if (row["subject"] not in train) == held_out]
    return [row for row in rows if is_held_out(row["subject"]) == held_out]


def factor_faces(data: Path, name: str, label: str = "") -> list[Path]:
    """The labelled crops of factors/NAME.tsv that train, sorted; those of one label, or of all."""
    rows = factor_rows(data, name, held_out=False)
    return sorted({data / row["path"] for row in rows if row["label"] and label in ("", row["label"])})


def is_oblique(row: Mapping[str, str]) -> bool:
    """Whether the light of a row of illumination_b, which is open between 20 and 50 degrees, counts as extreme in
    training: from 35 degrees on, so that the border between normal and extreme lies between what has labels."""
    return not row["label"] and float(row["angle"]) >= OBLIQUE_ANGLE


def is_held_out(subject: str) -> bool:
    """Whether a subject of factors/ measures and does not train: one in five, by a sum over the letters of the name."""
    return sum((i + 1) * ord(c) for i, c in enumerate(subject)) % 5 == 0
