"""MXNet's RecordIO, in which face recognition sets are published (`train.rec`, `train.idx`), read without MXNet.

A record is two little-endian uint32, the magic number and the length of what follows (lower 29 bits) with a
continuation flag (upper 3 bits), then the content, padded to 4 bytes. Content in which the magic number occurs is
split there into parts (flags 1, 2, ..., 2, 3), and the number itself is dropped. The content is `IfQQ` flag, label, id,
id2, then `flag` labels of float32, then an encoded image. Record 0 holds no image where its flag is above 0: its first
label is the number of the last sample plus 1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faces.reader import ImageError, read_image

MAGIC = 0xCED7230A
HEADER = struct.Struct("<IfQQ")
LENGTH = (1 << 29) - 1
PREFIX = np.dtype(
    {
        "names": ["magic", "length", "flag", "label", "id", "id2", "first"],
        "formats": ["<u4", "<u4", "<u4", "<f4", "<u8", "<u8", "<f4"],
    }
)
BLOCK = 1 << 18  # records whose beginnings are looked at together


class RecordError(ValueError):
    """The file is no RecordIO of images, or damaged."""


@dataclass(frozen=True)
class Samples(Sequence[str]):
    """The samples of a record file: the byte at which each begins, as text, which `RecordReader` takes."""

    offsets: NDArray[np.int64]  # (N,)
    labels: NDArray[np.int64]  # (N,)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        return str(self.offsets[index])


@dataclass(frozen=True)
class RecordReader:
    """Reads the image of the record at a byte of the file; usable in any process."""

    path: str

    def __call__(self, offset: str) -> NDArray[np.uint8]:
        """RGB uint8 (H, W, 3). Raises ImageError."""
        try:
            content = read_record(_descriptor(self.path), int(offset))
            flag = HEADER.unpack_from(content)[0]
        except (RecordError, struct.error) as error:
            raise ImageError("truncated", f"{self.path}, byte {offset}: {error}") from error
        return read_image(content[HEADER.size + 4 * flag :])


def read_samples(path: str | Path) -> Samples:
    """Where the samples of a `.rec` file are, and their labels, in the order of their numbers.

    The numbers come from the `.idx` file beside it, or, where there is none, from the records themselves, which takes
    one pass over the file. Raises RecordError.
    """
    path = Path(path)
    index = path.with_suffix(".idx")
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    numbers, offsets = _read_index(index) if index.is_file() else _scan(path, content)
    order = np.argsort(numbers, kind="stable")
    numbers, offsets = numbers[order], offsets[order]
    if not len(offsets) or offsets.max() > len(content) - PREFIX.itemsize:
        raise RecordError(f"{path}: {len(offsets)} records, the last beyond the end of the file; is it cut off?")
    starts = _starts(path, content, offsets)
    if numbers[0] == 0 and starts["flag"][0] > 0:
        _require_whole(path, starts["first"][:1])
        samples = (numbers > 0) & (numbers < int(starts["first"][0]))
    else:
        samples = np.ones(len(numbers), bool)
    labels = np.where(starts["flag"] > 0, starts["first"], starts["label"])[samples]
    _require_whole(path, labels)
    return Samples(offsets[samples], labels.astype(np.int64))


def _require_whole(path: Path, labels: NDArray[np.float32]) -> None:
    """Raise RecordError for labels (N,) that are no whole numbers, as NaN."""
    wrong = (np.trunc(labels) != labels) | (np.abs(labels) >= 2**53)
    if wrong.any():
        raise RecordError(f"{path}: a label is {labels[wrong][0]:g}; whole numbers were expected, is the file damaged?")


def read_record(descriptor: int, offset: int) -> bytes:
    """The content of the record that begins at a byte of an open file. Raises RecordError."""
    parts: list[bytes] = []
    while True:
        head = os.pread(descriptor, 8, offset)
        magic, length = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
        flag, size = length >> 29, length & LENGTH
        if magic != MAGIC or (flag in (0, 1)) != (not parts) or flag > 3:
            raise RecordError(f"no record begins at byte {offset}")
        parts.append(os.pread(descriptor, size, offset + 8))
        if len(parts[-1]) < size:
            raise RecordError(f"the record at byte {offset} is cut off")
        if flag in (0, 3):
            return struct.pack("<I", MAGIC).join(parts)
        offset += 8 + (size + 3) // 4 * 4


@lru_cache(maxsize=8)
def _descriptor(path: str) -> int:
    """Opened once in each process; reading by position, processes may share it."""
    return os.open(path, os.O_RDONLY)


def _read_index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        table = np.array(path.read_bytes().split(), np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{path}: expected lines `number<TAB>byte`") from error
    if table.size and table.min() < 0:
        raise RecordError(f"{path}: a number or a byte is negative; expected lines `number<TAB>byte`")
    return table[:, 0], table[:, 1]


def _scan(path: Path, content: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    offsets = np.fromiter(_walk(path, content), np.int64)
    return _starts(path, content, offsets)["id"].astype(np.int64), offsets


def _walk(path: Path, content: NDArray[np.uint8]) -> Iterator[int]:
    """The byte at which each record begins."""
    offset = 0
    while offset + PREFIX.itemsize <= len(content):
        magic, length = content[offset : offset + 8].view("<u4").tolist()
        if magic != MAGIC:
            raise RecordError(f"{path}: no record begins at byte {offset}")
        if length >> 29 < 2:
            yield offset
        offset += 8 + ((length & LENGTH) + 3) // 4 * 4


def _starts(path: Path, content: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.void]:
    """The beginning of each record, (N,) of `PREFIX`. `first` is the first label only where the flag is above 0."""
    starts = np.empty(len(offsets), PREFIX)
    for block in (slice(start, start + BLOCK) for start in range(0, len(offsets), BLOCK)):
        starts[block] = content[offsets[block, None] + np.arange(PREFIX.itemsize)].view(PREFIX)[:, 0]
    wrong = np.flatnonzero(starts["magic"] != MAGIC)
    if len(wrong):
        raise RecordError(f"{path}: no record begins at byte {offsets[wrong[0]]}; does the .idx belong to it?")
    if ((starts["length"] & LENGTH) < HEADER.size).any():
        raise RecordError(f"{path}: records too short for a label and an image; is it a set of images?")
    return starts
