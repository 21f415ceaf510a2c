"""Pair lists in the formats of the published sets. Large lists are read without a Python loop over the pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from evaluation.plain_pickle import read_plain_pickle
from labels.label_table import is_storable
from model.files import write_text

BLOCK = 1 << 24  # characters read at once


class PairListError(ValueError):
    """The file is no pair list that we know, or a line of it is damaged."""


@dataclass(frozen=True)
class Pairs:
    """P comparisons between N images, in the order of the list."""

    names: list[str]  # (N,) each image once, in order of first appearance
    first: NDArray[np.int32]  # (P,) index into names
    second: NDArray[np.int32]  # (P,)
    mated: NDArray[np.bool_]  # (P,) True for two images of one identity


def read_pairs(path: str | Path) -> Pairs:
    """Read a pair list; the first line tells which kind it is.

    - TSV with the header `path_a path_b same` (paths may hold spaces), or the same three columns without a header
    - CR-FIQA's `pair_list.txt`: `name1 name2 label`
    - LFW's `pairs.txt` and XQLFW's list: a first line of one or two numbers, then `name a b` or `name1 a name2 b`
    - CPLFW's and CALFW's lists: a pair is two lines `file label`
    - InsightFace's `.bin`: images 2k and 2k + 1 are a pair and are named 00000, 00001, ...

    Raises PairListError with the line at fault, and PlainPickleError for a `.bin` that holds more than images.
    """
    path = Path(path)
    if path.suffix.lower() == ".bin":
        return _from_bin(path)
    with _open(path) as file:
        head = file.readline().rstrip("\r\n")
    columns = head.split("\t") if "\t" in head else head.split()
    if columns and len(columns) <= 2 and all(column.isdigit() for column in columns):
        return _from_rows(_lfw_rows(path))
    if len(columns) == 2:
        return _from_rows(_two_line_rows(path))
    if len(columns) == 3:
        return _from_columns(path, "\t" if "\t" in head else None, has_header=not columns[2].strip().isdigit())
    raise PairListError(
        f"{path}: the first line is {head[:80]!r}; known are `path_a path_b same` (TSV), `name1 name2 label`,"
        " LFW's and XQLFW's pairs, CPLFW's two lines a pair, and InsightFace's .bin"
    )


def write_pairs(path: str | Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write (name, name, 1 or 0) as the TSV that `read_pairs` reads. Raises ValueError for a name it cannot hold."""
    lines = ["path_a\tpath_b\tsame"]
    for a, b, same in rows:
        if not is_storable(a + b):
            raise ValueError(f"{a!r}, {b!r}: a pair list cannot hold a tab or a line end; rename the file")
        lines.append(f"{a}\t{b}\t{same}")
    write_text(path, "\n".join([*lines, ""]))


def _open(path: Path) -> IO[str]:
    """Names that are no UTF-8 survive, and only `\\n` ends a line."""
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _lines(path: Path) -> list[str]:
    with _open(path) as file:
        return [line.rstrip("\r") for line in file.read().split("\n")]


def _from_columns(path: Path, separator: str | None, has_header: bool) -> Pairs:
    index: defaultdict[str, int] = defaultdict(count().__next__)  # a new name gets the next number
    first, second, same = [], [], []
    with _open(path) as file:
        if has_header:
            file.readline()
        while block := (file.read(BLOCK) + file.readline()).replace("\r\n", "\n"):
            fields = block.split() if separator is None else block.strip("\n").replace("\n", separator).split(separator)
            try:
                labels = np.fromiter(map(int, fields[2::3]), np.int64)
            except (ValueError, OverflowError):
                raise _broken_line(path, separator, has_header) from None
            if len(fields) % 3 or not np.isin(labels, (0, 1)).all():
                raise _broken_line(path, separator, has_header)
            del fields[2::3]  # what is left alternates between the two names
            images = np.fromiter(map(index.__getitem__, fields), np.int32, len(fields))  # a loop in C
            first.append(images[0::2])
            second.append(images[1::2])
            same.append(labels == 1)
    if not same:
        raise PairListError(f"{path} holds no pairs")
    return Pairs(list(index), np.concatenate(first), np.concatenate(second), np.concatenate(same))


def _broken_line(path: Path, separator: str | None, has_header: bool) -> PairListError:
    for number, line in enumerate(_lines(path), 1):
        columns = line.split(separator)
        good = len(columns) == 3 and re.fullmatch("0*[01]", columns[2].strip()) is not None
        if not good and not (has_header and number == 1):
            return PairListError(
                f"{path}, line {number}: expected two names and 1 (mated) or 0, found {line.strip()[:120]!r}"
            )
    return PairListError(f"{path}: every line needs two names and 1 (mated) or 0")


Row = tuple[str, str, bool]


def _from_rows(rows: Iterator[Row]) -> Pairs:
    index: defaultdict[str, int] = defaultdict(count().__next__)
    table = np.array([(index[a], index[b], same) for a, b, same in rows], np.int32).reshape(-1, 3)
    return Pairs(list(index), table[:, 0], table[:, 1], table[:, 2] == 1)


def _lfw_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path)[1:], 2):
        match line.split():
            case [name, a, b] if a.isdecimal() and b.isdecimal():
                yield _lfw_name(name, a), _lfw_name(name, b), True
            case [name_a, a, name_b, b] if a.isdecimal() and b.isdecimal():
                yield _lfw_name(name_a, a), _lfw_name(name_b, b), False
            case []:
                continue
            case _:
                raise PairListError(f"{path}, line {number}: expected `name a b` or `name1 a name2 b`, found {line!r}")


def _lfw_name(identity: str, number: str) -> str:
    return f"{identity}/{identity}_{number.lstrip('0'):0>4}.jpg"


def _two_line_rows(path: Path) -> Iterator[Row]:
    lines = [line.rsplit(None, 1) for line in _lines(path) if line.strip()]
    for number, (one, two) in enumerate(zip(lines[0::2], lines[1::2], strict=False)):
        if len(one) != 2 or len(two) != 2 or one[1] != two[1] or not one[1].isdecimal():
            raise PairListError(
                f"{path}, pair {number + 1}: expected two lines `file label` with equal labels, found {one} and {two}"
            )
        yield one[0], two[0], one[1].strip("0") != ""
    if len(lines) % 2:
        raise PairListError(f"{path}: an odd number of lines, and a pair is two lines `file label`")


def read_bin(path: str | Path) -> tuple[list[bytes], list[bool]]:
    """InsightFace's verification set: 2P encoded images and P labels; pair k is images 2k and 2k + 1.

    Raises PairListError when it is something else, PlainPickleError when it is not a plain pickle.
    """
    match read_plain_pickle(path):
        case (list() | tuple() as images, list() | tuple() as labels) if len(images) == 2 * len(labels):
            pass
        case _:
            raise PairListError(f"{path}: expected a list of 2P images and a list of P labels")
    if not all(isinstance(label, bool | int | np.bool_ | np.integer) for label in labels):
        raise PairListError(f"{path}: the labels of the pairs are not True and False")
    if sum(_size(image, path) for image in images) > Path(path).stat().st_size:  # one image, named again and again
        raise PairListError(f"{path}: the images are larger than the file")
    encoded = [image if isinstance(image, bytes) else image.tobytes() for image in images]
    return encoded, [bool(label) for label in labels]


def _size(image: object, path: str | Path) -> int:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.size
    if isinstance(image, bytes):
        return len(image)
    raise PairListError(f"{path}: an image is of type {type(image).__name__}; the bytes of image files were expected")


def _from_bin(path: Path) -> Pairs:
    images, labels = read_bin(path)
    first = np.arange(0, len(images), 2, dtype=np.int32)
    return Pairs([f"{i:05d}" for i in range(len(images))], first, first + 1, np.array(labels, bool))


def identities(pairs: Pairs) -> NDArray[np.int64]:
    """(N,) a number for each image, equal for images of one identity.

    The folder of an image, or its file name without the number at the end, when that agrees with every pair; else
    images that mated pairs connect, directly or through others.
    """
    stems = (re.sub(r"[_-]?\d+(\.\w+)?$", "", name) for name in pairs.names)
    for labels in ([name.rpartition("/")[0] for name in pairs.names], list(stems)):
        identity = np.unique(labels, return_inverse=True)[1]
        if np.array_equal(identity[pairs.first] == identity[pairs.second], pairs.mated):
            return identity
    return _connected(len(pairs.names), pairs.first[pairs.mated], pairs.second[pairs.mated])


def _connected(size: int, a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int64]:
    """Connected components: the smallest index that each of `size` nodes reaches over the edges a-b."""
    label = np.arange(size)
    while True:
        new = label.copy()
        low = np.minimum(label[a], label[b])
        np.minimum.at(new, label[a], low)  # the roots of both ends hang under the smaller one
        np.minimum.at(new, label[b], low)
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, label):
            return label
        label = new
