"""Measuring many images, one row an image, so that an interrupted measurement goes on where it stopped.

The rows lie in one `.npy` file per column, which has its final length from the beginning. `progress.json` says how many
rows are complete, and has their checksum; it is written after their bytes have reached the disk. So a run may be killed
at any time, and the results, which may be larger than the memory, are memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from faces.cluster import Cluster
from faces.containers import read_picture
from faces.reader import MAX_BYTES
from faces.workers import Loaded, load_batches, read_and_prepare
from model.files import read_json, replacing, shard_path, write_text

T = TypeVar("T")
PART_BATCHES = 32    # the progress is recorded after so many batches: what a killed run loses at most (cluster.KEPT)
START_ANEW = "run without --resume to start anew"
TEXT_WIDTH = 16      # characters of a text column, such as the status

BLOCK_BYTES = 1 << 20   # that are read at a time for a checksum

Columns = dict[str, np.ndarray]   # status (N,) str, embeddings (N, D) float32, labels (N, 5) int8: one row an image


class Done(NamedTuple):
    """How many rows are complete, and the CRC-32 of the header and these rows in each file."""

    rows: int
    checksums: dict[str, int]


def part_of(items: Sequence[T], shard: tuple[int, int], batch_size: int) -> Sequence[T]:
    """The items of a shard (number from 1, count): whole batches in their order, so that each item is computed with
    the same others as in a run without shards."""
    batches = math.ceil(len(items) / batch_size)
    start, stop = (batches * edge // shard[1] * batch_size for edge in (shard[0] - 1, shard[0]))
    return items[start:stop]


def start_parts(folder: Path, settings: Mapping[str, Any], resume: bool) -> Path:
    """The folder for the parts of a measurement: emptied, or with `resume` as an earlier run left it.

    Raises ValueError when that run had other settings.
    """
    record = folder / "settings.json"
    if folder.exists() and not (resume and record.is_file()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if record.is_file():
        _require_same(record, settings, "resume", "run without --resume to start anew, or with the same")
    write_json(record, settings)
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def images_hash(paths: Iterable[str | Path]) -> str:
    """SHA-256 (hex) of the paths, sizes and times of change of image files: other images, another hash.

    A symbolic link counts as the file that it leads to. What does not exist has its path only.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            line = f"{path}\t{status.st_size}\t{status.st_mtime_ns}\n"
        except (OSError, ValueError):   # ValueError: a NUL character in the path. The measurement reports both
            line = f"{path}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def measure(
    folder: Path,
    names: Sequence[str],
    prepare: Callable[[np.ndarray], Any],
    compute: Callable[[Sequence[Loaded[Any]]], Columns],
    parts: Path,
    batch_size: int,
    workers: int,
    max_bytes: int = MAX_BYTES,
    cluster: Cluster | None = None,
    make_compute: Callable[[], Callable[[Sequence[Loaded[Any]]], Columns]] | None = None,
) -> Columns:
    """The columns of the pictures with these names (one or more) below a folder: `prepare` sees each picture, in a
    worker process, `compute` each batch of what it returned.

    The columns are memory-mapped, read-only files in the folder `parts`. Rows that an earlier run completed there are
    not measured again, with the same result to the bit, since a run goes on where a batch ended. A bar on stderr shows
    the progress. With a `cluster` its processes do the same work; `make_compute` then makes `compute` in each of them.
    Raises ValueError for a text of more than TEXT_WIDTH characters.
    """
    from tqdm import tqdm

    parts.mkdir(parents=True, exist_ok=True)
    done = _completed(parts)
    if done.rows == 0:
        for file in parts.glob("*.npy"):   # of a run that recorded nothing
            file.unlink()
    paths = (str(folder / name) for name in islice(names, done.rows, None))
    read = partial(read_picture, max_bytes=max_bytes)
    if cluster and make_compute:
        results = cluster.results(paths, partial(read_and_prepare, read, prepare), make_compute, batch_size, parts.name)
    else:
        results = map(compute, load_batches(paths, prepare, batch_size, workers, read))
    with tqdm(total=len(names), initial=done.rows, desc=parts.name, unit=" faces", disable=None) as progress:
        try:
            for number, columns in enumerate(results, 1):
                done = _write_rows(parts, columns, done, len(names))
                progress.update(len(columns["status"]))
                if number % PART_BATCHES == 0:
                    _record(parts, done)
        finally:
            _record(parts, done)
    return _columns_in(parts)


def gather(folder: Path, name: str, settings: Mapping[str, Any], items: Sequence[str], count: int) -> Columns:
    """The columns that the shards 1 to `count` of a measurement left in `shard_path(folder)` / `name`, as one run would
    have made them of these items; `settings` hold its batch size.

    Raises ValueError when a shard is missing, unfinished, or had other settings.
    """
    found = []
    for shard in ((number, count) for number in range(1, count + 1)):
        parts = shard_path(folder, shard)
        if not (parts / "settings.json").is_file():
            raise ValueError(f"there is no {parts}: run --shard {shard[0]}/{count} first")
        _require_same(parts / "settings.json", settings, "merge", f"run --shard {shard[0]}/{count} with the same")
        expected = len(part_of(items, shard, int(settings["batch_size"])))
        if _completed(parts / name).rows != expected:
            raise ValueError(f"{parts} is not finished: run --shard {shard[0]}/{count} --resume")
        if expected:
            found.append(_columns_in(parts / name))
    return {key: np.concatenate([columns[key] for columns in found]) for key in found[0]}


def remove_shards(folder: Path, count: int) -> None:
    """Remove what the shards left, after the output has been made of it."""
    for number in range(1, count + 1):
        shutil.rmtree(shard_path(folder, (number, count)))


def _columns_in(parts: Path) -> Columns:
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(parts.glob("*.npy"))}


def _require_same(record: Path, settings: Mapping[str, Any], verb: str, advice: str) -> None:
    before, now = read_json(record, dict, START_ANEW), json.loads(json.dumps(settings))
    if changed := [name for name in now if before.get(name) != now[name]]:
        raise ValueError(
            f"cannot {verb}: {', '.join(changed)} changed since the earlier run ({record}); {advice} settings"
        )


def _completed(parts: Path) -> Done:
    """What `_record` recorded. Raises ValueError when the rows are not those that were."""
    record = parts / "progress.json"
    if not record.is_file():
        return Done(0, {})
    progress = read_json(record, dict, START_ANEW)
    rows, checksums = progress.get("rows"), progress.get("checksums")
    if not isinstance(rows, int) or not isinstance(checksums, dict):
        raise ValueError(f"{record} is damaged; {START_ANEW}")
    if not all((parts / name).is_file() for name in checksums):
        return Done(0, {})
    for name, checksum in checksums.items():
        _require_rows(parts / name, rows, checksum)
    return Done(rows, checksums)


def _require_rows(path: Path, rows: int, checksum: int) -> None:
    """Raise ValueError when a `.npy` file does not hold the rows that it did when they were recorded."""
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:   # numpy evaluates the header, and a damaged one can raise anything
            raise ValueError(f"{path} is damaged; {START_ANEW}") from error
        size, found = file.tell() + rows * math.prod(shape[1:]) * dtype.itemsize, 0
        if os.fstat(file.fileno()).st_size < size:
            raise ValueError(f"{path} has lost some of its {rows} finished rows; {START_ANEW}")
        file.seek(0)
        while block := file.read(min(size, BLOCK_BYTES)):
            found, size = zlib.crc32(block, found), size - len(block)
        if found != checksum:
            raise ValueError(f"{path} is damaged: its {rows} finished rows have changed; {START_ANEW}")


def _record(parts: Path, done: Done) -> None:
    """Record that so many rows are complete, after they have reached the disk."""
    for path in sorted(parts.glob("*.npy")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    write_json(parts / "progress.json", done._asdict())


def _write_rows(parts: Path, batch: Columns, done: Done, rows: int) -> Done:
    """Write a batch of columns behind the rows that are done, into files for `rows` rows; what is done then."""
    checksums = {}
    for name, column in batch.items():
        path, values = parts / f"{name}.npy", _as_stored(column)
        if not path.exists():
            _create(path, values, rows)
        with open(path, "r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            start, content = file.tell(), values.tobytes()
            file.seek(0)
            of_header = zlib.crc32(file.read(start))
            file.seek(start + done.rows * values[:1].nbytes)
            file.write(content)
        checksums[path.name] = zlib.crc32(content, done.checksums.get(path.name, of_header))
    return Done(done.rows + len(batch["status"]), dict(sorted(checksums.items())))


def _create(path: Path, values: np.ndarray, rows: int) -> None:
    """A `.npy` file for so many rows like these; its rows are not written yet."""
    header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False,
              "shape": (rows, *values.shape[1:])}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


def _as_stored(column: np.ndarray) -> np.ndarray:
    """The column with its rows next to each other, and with a dtype that does not depend on the texts of this batch."""
    if column.dtype.kind != "U":
        return np.ascontiguousarray(column)
    if column.dtype.itemsize > np.dtype(f"U{TEXT_WIDTH}").itemsize:
        raise ValueError(f"{max(column, key=len)!r} has more than {TEXT_WIDTH} characters, which is the limit")
    return column.astype(f"U{TEXT_WIDTH}")
