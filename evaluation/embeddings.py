"""Embeddings of an FR model: one `.npz` that can be memory-mapped, or a folder of `.npy` files, one for each image."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.edc import Floats
from model.cores import available_cores

# What numpy and zipfile raise for files that are no arrays, or damaged ones. RuntimeError is also that of a compression
# which zipfile does not know, and that of an encrypted member.
DAMAGE = (
    ValueError, LookupError, TypeError, EOFError, OverflowError, SyntaxError, tokenize.TokenError,
    RuntimeError, MemoryError, zlib.error, struct.error,
)  # fmt: skip
UNPACKED = 200  # times its packed size that a member of an .npz may have; and at least
SMALL = 1 << 26  # bytes


class EmbeddingsError(ValueError):
    """The file holds no embeddings, or rows without a direction."""


@dataclass(frozen=True)
class Embeddings:
    names: list[str]  # (N,)
    rows: NDArray[np.floating]  # (N, D), perhaps memory-mapped
    model_sha256: str | None


def read_embeddings(path: str | Path) -> Embeddings:
    """Read `names`, `embeddings` and `model_sha256` (optional) of an `.npz`, or a folder of `<name>.npy` vectors.

    The matrix of an uncompressed `.npz` is memory-mapped. Raises EmbeddingsError.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.npy"))
        if not files:
            raise EmbeddingsError(f"{path}: expected one .npy file for each image, found none")
        return Embeddings([file.relative_to(path).as_posix() for file in files], _stack(files), None)
    try:
        with zipfile.ZipFile(path) as opened:  # a single array or a CSV file is none
            _require_no_bomb(path, opened)
        with np.load(path, allow_pickle=False) as archive:
            names = _names(archive["names"])
            model = str(archive["model_sha256"]) if "model_sha256" in archive else None
            mapped = _memory_map(path, "embeddings.npy")
            rows = archive["embeddings"] if mapped is None else mapped
    except (FileNotFoundError, IsADirectoryError):
        raise EmbeddingsError(f"{path} does not exist; make it with `python evaluate.py embed`") from None
    except EmbeddingsError:
        raise
    except (*DAMAGE, OSError, zipfile.BadZipFile) as error:
        # numpy's own message would advise to load the file as a pickle, which can run code
        raise EmbeddingsError(
            f"{path} holds no embeddings ({type(error).__name__}): expected an .npz with the arrays names and"
            " embeddings, as `python evaluate.py embed` writes it, or a folder of .npy files"
        ) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise EmbeddingsError(f"{path}: its names are no list of texts")
    if rows.ndim != 2 or len(rows) != len(names) or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise EmbeddingsError(
            f"{path}: {len(names)} names and {rows.dtype} embeddings of shape {rows.shape}; numbers (names, D) were"
            " expected"
        )
    return Embeddings(names, rows, model)


def _names(array: NDArray[np.generic]) -> object:
    """A list of the names, unless it would be larger than the array: texts without characters take no bytes in it."""
    return array.tolist() if array.nbytes >= array.size else None


def _require_no_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise EmbeddingsError for members that are large only when they are unpacked."""
    for member in archive.infolist():
        if member.file_size > max(SMALL, UNPACKED * member.compress_size):
            raise EmbeddingsError(
                f"{path}: {member.filename} unpacks from {member.compress_size:,} to {member.file_size:,} bytes; "
                "embeddings hardly compress: make them with `python evaluate.py embed`"
            )


def _stack(files: list[Path]) -> NDArray[np.floating]:
    rows = [_vector(file) for file in files]
    if len({row.shape for row in rows}) > 1:
        raise EmbeddingsError(f"{files[0].parent}: the vectors differ in length")
    return np.stack(rows)


def _vector(file: Path) -> NDArray[np.floating]:
    try:
        return np.load(file, allow_pickle=False).reshape(-1)
    except (*DAMAGE, AttributeError):  # an .npz by another name has no reshape
        raise EmbeddingsError(f"{file}: expected the embedding of one image, an array of numbers") from None


def _memory_map(path: Path, member: str) -> np.memmap | None:
    """A stored member of a zip as an array on the disk, or None when it is compressed.

    numpy maps `.npy` files but not those inside an `.npz`; the data follow the member's local header of 30 bytes, its
    name and its extra field.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:  # mapped, its pointers would be bytes of the file
            raise EmbeddingsError(f"{path}: the embeddings are of type {dtype}; numbers were expected")
        order: str = "F" if fortran_order else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]


def pair_similarities(
    rows: NDArray[np.floating], first: NDArray[np.integer], second: NDArray[np.integer], chunk: int = 128
) -> Floats:
    """Cosine (P,) in float64 of rows[first] and rows[second], in chunks that stay in the cache.

    rows (N, D). Raises EmbeddingsError when a row that is used is zero or not finite.
    """
    rows = np.asarray(rows)  # a memory map as a plain array: indexing it is cheaper
    norm = np.ones(len(rows))
    used = np.flatnonzero(np.bincount(first, minlength=len(rows)) + np.bincount(second, minlength=len(rows)))
    result = np.empty(len(first))

    def norms(start: int, stop: int) -> None:
        for part in (used[i : min(i + chunk, stop)] for i in range(start, stop, chunk)):
            norm[part] = np.linalg.norm(rows[part].astype(np.float64), axis=1)

    def cosines(start: int, stop: int) -> None:
        for part in (slice(i, min(i + chunk, stop)) for i in range(start, stop, chunk)):
            a, b = first[part], second[part]
            dot = np.vecdot(rows[a].astype(np.float64), rows[b].astype(np.float64))
            result[part] = dot / (norm[a] * norm[b])

    _in_threads(norms, len(used))
    bad = np.flatnonzero(~((norm > 0) & np.isfinite(norm)))
    if bad.size:
        raise EmbeddingsError(f"{bad.size} embeddings are zero or not finite, the first is row {bad[0]}")
    _in_threads(cosines, len(first))
    return result


def _in_threads(work: Callable[[int, int], None], size: int) -> None:
    """work(start, stop) over equal parts of range(size); numpy lets go of the interpreter's lock in the large calls."""
    edges = np.linspace(0, size, available_cores() + 1).astype(int).tolist()
    with ThreadPoolExecutor(len(edges) - 1) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
