"""Pictures inside tar archives (WebDataset's shards) and Parquet files (Hugging Face's data sets), read in place.

A picture in a container has the path CONTAINER/MEMBER: `shard-0001.tar/ada/1.jpg`, or `train.parquet/17` for row 17.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from .listing import IMAGE_SUFFIXES
from .reader import MAX_BYTES, ImageError, read_image

SUFFIXES = (".tar", ".parquet")
IMAGE_COLUMNS = ("image", "bytes", "jpg", "img")   # of a Parquet file: binary, or a struct with the field `bytes`
_INSIDE = re.compile(r"\.(?:tar|parquet)(?=/)", re.IGNORECASE)


def is_container(path: str) -> bool:
    """Whether the path is a tar archive or a Parquet file, by its name."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def members(path: str) -> Iterator[str]:
    """The paths of the pictures in a container, in the order in which they lie there.

    Of a tar archive these are the regular files with an image's suffix. An archive that is cut off ends with its own
    path, which is no picture, so that the loss has a row. Raises ValueError for a damaged container, or a
    Parquet file without one of `IMAGE_COLUMNS`, ImportError without pyarrow.
    """
    if path.lower().endswith(".tar"):
        places, whole = _tar_index(path, _version(path))
        yield from (f"{path}/{name}" for name in places if name.lower().endswith(IMAGE_SUFFIXES))
        if not whole:
            yield path
    else:
        yield from (f"{path}/{row}" for row in range(_parquet(path, _version(path)).rows))


def split(path: str) -> tuple[str, str] | None:
    """Container and member of a path that `members` gives; None for the path of a file of its own."""
    for place in _INSIDE.finditer(path):
        if os.path.isfile(path[: place.end()]):
            return path[: place.end()], path[place.end() + 1 :]
    return None


def with_members(paths: Iterable[str]) -> Iterator[str]:
    """The paths, those of containers replaced by the paths of their pictures. A damaged container keeps its own path,
    which is no picture, so that it has a row and stops nothing."""
    for path in paths:
        try:
            yield from members(path) if is_container(path) else [path]
        except ValueError:
            yield path


def read_picture(path: str, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """`read_image` of a file, or of a picture in a container. Raises ImageError."""
    if place := split(path):
        return read_image(read_member(*place, max_bytes), max_bytes=max_bytes)
    return read_image(path, max_bytes=max_bytes)


def read_member(container: str, member: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a picture. Raises ImageError: missing, truncated, too_large or unreadable."""
    name = f"{container}/{member}"
    try:
        version = _version(container)
        if container.lower().endswith(".parquet"):
            return _parquet(container, version).read(int(member), name)
        start, size = _tar_index(container, version)[0][member]
        if size > max_bytes:   # the header of a damaged archive may say anything
            raise ImageError("too_large", f"{name} has {size:,} bytes, limit {max_bytes:,}")
        with open(container, "rb") as file:
            file.seek(start)
            content = file.read(size)
    except (KeyError, IndexError, FileNotFoundError) as error:
        raise ImageError("missing", f"{name} does not exist") from error
    except ValueError as error:
        raise ImageError("truncated", f"{name}: {error}") from error
    except OSError as error:
        raise ImageError("unreadable", f"{name} cannot be read: {error.strerror or error}") from error
    if len(content) < size:
        raise ImageError("truncated", f"{name}: the archive ends before it")
    return content


def _version(path: str) -> tuple[int, int]:
    """Changes with the content of a file, so that no index of an older one is used."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _tar_index(path: str, version: tuple[int, int]) -> tuple[dict[str, tuple[int, int]], bool]:
    """Name -> first byte and size of each regular file (of several with one name the last, as when unpacking), and
    whether the archive is whole."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:   # not compressed: every member is reached with one seek
            for info in archive:
                if info.isreg() and not info.issparse():
                    places[info.name] = info.offset_data, info.size
    except tarfile.TarError as error:
        if not places:
            raise ValueError(f"{path} is no readable tar archive (compressed ones are not read): {error}") from error
        return places, False
    return places, True


class _Parquet:
    """The pictures of a Parquet file; the row group that was read last is kept."""

    def __init__(self, path: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("pictures in Parquet files need pyarrow: pip install pyarrow") from error
        try:
            self.file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no readable Parquet file: {error}") from error
        names = self.file.schema_arrow.names
        self.column = next((name for name in IMAGE_COLUMNS if name in names), None)
        if self.column is None:
            raise ValueError(f"{path} has no column of pictures: expected one of {', '.join(IMAGE_COLUMNS)}, it has "
                             f"{', '.join(names)}")
        self.sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.metadata.num_row_groups)]
        self.rows = sum(self.sizes)
        self.kept: tuple[int, Any] = -1, None

    def read(self, row: int, name: str) -> bytes:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        group = 0
        while row >= self.sizes[group]:
            row -= self.sizes[group]
            group += 1
        if self.kept[0] != group:
            self.kept = group, self.file.read_row_group(group, [self.column]).column(0)
        value = self.kept[1][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ImageError("missing", f"{name} holds no bytes of a picture")
        return content


@lru_cache(maxsize=4)
def _parquet(path: str, version: tuple[int, int]) -> _Parquet:
    return _Parquet(path)
