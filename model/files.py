"""Files that are written atomically, outputs that only one run writes, and text that holds any file name."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new, empty file beside `path`, to be written in the block; at its end it takes the place of `path`.

    Readers see the old file or the complete new one. After an error the old file stays and the new one is removed.
    Two processes that write at the same time have a temporary file each. Raises OSError where nothing can be written.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine could leave an empty file under the new name
        os.chmod(temporary, _mode_of_new_files())  # mkstemp's files are for their owner only
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path`, to be filled in the block; at its end it becomes `path`, which is absent or empty.

    After an error nothing is left of it. Raises OSError where nothing can be written, or when `path` has been filled.
    """
    target = Path(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's folders are for their owner only
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_run(output: str | Path) -> Iterator[None]:
    """Hold the output of a run; a second run that wants the same output ends at once.

    The lock is the file `OUTPUT.lock`. The operating system frees it when the process ends, however it ends. Raises
    BlockingIOError, an OSError, when another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{output}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another run is writing {output}; wait for its end, or choose another output for this run"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be another run's
        lock.release()


def open_text(path: str | Path, mode: str = "r") -> IO[str]:
    """Open a text file that may hold any file name: UTF-8, other bytes by `surrogateescape`, line ends untouched.

    A byte order mark at the beginning is skipped when reading.
    """
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return open(path, mode, encoding=encoding, errors="surrogateescape", newline="")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as `open_text` reads it."""
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        file.write(text)


def write_csv_rows(file: IO[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV with `\\n` line ends. A cell with a comma, a quote or any line end is quoted."""
    plain = csv.writer(file, lineterminator="\n")
    quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # before Python 3.13 the plain writer leaves a lone carriage return unquoted
        writer = quoting if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain
        writer.writerow(row)


def _mode_of_new_files() -> int:
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
