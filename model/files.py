"""Files that are written atomically, outputs that only one run writes, and text that holds any file name."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

# What a spreadsheet would compute, perhaps behind quotes of ours; a plain number is none.
FORMULA = re.compile(r"'*([=@\t\r\n＝＋－＠]|[+-](?![\d.]+(e[+-]\d+)?\Z))")
NO_UTF8 = re.compile(r"(\\*)(?:([\udc80-\udcff])|(?=udc[89a-f][0-9a-f]))")   # a byte, or what `as_utf8` makes of one
AS_UTF8 = re.compile(r"(\\+)udc([89a-f][0-9a-f])")
SIDES = (".skipped.tsv", ".json")   # what a run may write beside its output
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")   # moves a cursor, or turns text


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
def filling_folder(path: str | Path, replaced: bool = False) -> Iterator[Path]:
    """A new folder beside `path`, to be filled in the block; at its end it becomes `path`, which is absent or empty.

    After an error nothing is left of it. Raises OSError where nothing can be written, or when `path` has been filled,
    unless it is to be `replaced`.
    """
    target = Path(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's folders are for their owner only
        if replaced:
            old = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".old", dir=target.parent))
            os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_run(output: str | Path) -> Iterator[None]:
    """Hold the output of a run; a second run that wants the same output ends at once.

    The lock is the file `OUTPUT.lock`. The operating system frees it when the process ends, however it ends. Raises
    BlockingIOError, an OSError, when another process holds it. Temporary files that a killed run left beside the
    output are removed.
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
        target = Path(output)
        names = [target.name, *(f"{target.name}{side}" for side in SIDES)]
        remove_leftovers(target.parent, "|".join(re.escape(name[:100]) for name in names))
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be another run's
        lock.release()


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what `replacing` and `filling_folder` left in a folder when they were killed. `names` is the regular
    expression of the files that they were to become. Call it while no other process writes these."""
    leftover = re.compile(rf"\.({names})\.[a-z0-9_]{{8}}\.(partial|old)")
    for path in folder.iterdir() if folder.is_dir() else ():
        if not leftover.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def only_writer(output: str | Path) -> Iterator[None]:
    """`only_run` for an output that is one file, in a folder that is made where there is none.

    Raises IsADirectoryError, before any work, where the output is a folder.
    """
    if Path(output).is_dir():
        raise IsADirectoryError(f"the output {output} is a folder; the name of a file was expected")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with only_run(output):
        yield


def shard_path(path: str | Path, shard: tuple[int, int]) -> Path:
    """Where a shard (number from 1, count) of a run keeps what would be at `path` without shards."""
    return Path(f"{path}.{shard[0]}-of-{shard[1]}")


def free_name(target: Path, is_taken: Callable[[Path], bool] = Path.exists) -> Path:
    """The path itself, or when it is taken the first free one of a~2.jpg, a~3.jpg, …"""
    further = (target.with_name(f"{target.stem}~{number}{target.suffix}") for number in count(2))
    return next(path for path in chain([target], further) if not is_taken(path))


def open_text(path: str | Path, mode: str = "r") -> IO[str]:
    """Open a text file that may hold any file name: UTF-8, other bytes by `surrogateescape`, line ends untouched.

    A byte order mark at the beginning is skipped when reading.
    """
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return open(path, mode, encoding=encoding, errors="surrogateescape", newline="")


def read_names(path: str | Path) -> list[str]:
    """The lines of a text file, each a name of any bytes."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


def names_in(files: Iterable[str | Path]) -> set[str]:
    """The names in text files, one a line, without the spaces around them."""
    return {name for file in files for line in read_names(file) if (name := line.strip())}


def read_json(path: str | Path, expected: type, advice: str) -> Any:
    """The content of a JSON file that is of the type `expected`.

    Raises ValueError, with `advice` on what to do, for a file that is damaged; OSError where there is none.
    """
    with open_text(path) as file:
        return parse_json(file.read(), expected, f"{path} is damaged; {advice}")


def parse_json(text: str, expected: type, complaint: str) -> Any:
    """A JSON value of the type `expected`. Raises ValueError with the complaint, for too deep ones too."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(complaint) from error
    if not isinstance(content, expected):
        raise ValueError(complaint)
    return content


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as `open_text` reads it."""
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        file.write(text)


def write_csv_rows(file: IO[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV with `\\n` line ends. A cell with a comma, a quote or any line end is quoted.

    A text that a spreadsheet would take for a formula gets a `'` in front; `csv_text` takes it away.
    """
    plain = csv.writer(file, lineterminator="\n")
    quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # before Python 3.13 the plain writer leaves a lone carriage return unquoted
        writer = quoting if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain
        writer.writerow([f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell for cell in row])


def csv_text(cell: str) -> str:
    """The text of a cell that `write_csv_rows` wrote."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell


def as_utf8(name: str) -> str:
    r"""A file name as text that is always UTF-8: bytes that are not as `\udcXX`, and backslashes before such a text
    doubled, so that different names stay different. `from_utf8` gives the name back."""
    return NO_UTF8.sub(lambda m: 2 * m[1] + (f"\\u{ord(m[2]):x}" if m[2] else ""), name)


def from_utf8(text: str) -> str:
    """The name of which `as_utf8` made the text."""

    def name(found: re.Match[str]) -> str:
        half, is_byte = divmod(len(found[1]), 2)
        return half * "\\" + (chr(int(f"dc{found[2]}", 16)) if is_byte else f"udc{found[2]}")

    return AS_UTF8.sub(name, text)


def printable(text: str) -> str:
    """Text on one line: line ends, tabs and other control characters, which would move the cursor or change the
    terminal, as escapes."""
    return UNPRINTABLE.sub(lambda m: m[0].encode("unicode_escape").decode().replace("\\udc", "\\x"), text)


def _mode_of_new_files() -> int:
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
