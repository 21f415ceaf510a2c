"""Quality score tables in all common formats, and the table that the baselines write."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.plain_pickle import read_plain_pickle
from model.files import csv_text, from_utf8, open_text, replacing, write_csv_rows

OFIQ_NAME, OFIQ_QUALITY, OFIQ_FAILURE = "Filename", "UnifiedQualityScore.scalar", -1


class ScoreTableError(ValueError):
    """The file is no score table that we know, or a line of it is damaged."""


class ScoreRow(NamedTuple):
    """A row of a table; the quality is NaN without an `ok` score."""

    path: str
    quality: float
    face: int | None = None
    """0 for the first face of an image, 1 for the next; None where the table does not say."""
    of_video: bool = False
    """Whether the row is of a frame of a video."""


Rows = Iterator[ScoreRow]


def read_scores(path: str | Path) -> dict[str, float]:
    """Name -> quality, higher is better, NaN for an image without an `ok` score: `by_name` of `read_rows`."""
    return by_name(read_rows(path), path)


def by_name(rows: Iterable[ScoreRow], source: str | Path) -> dict[str, float]:
    """One quality for each name: of several faces of an image that of the first, which is the largest when
    `inference.py` wrote them. A name that is repeated without faces keeps its last score.

    Raises ScoreTableError when the rows hold several frames or faces of one video, of which none stands for it.
    """
    kept: dict[str, ScoreRow] = {}
    for row in rows:
        before = kept.get(row.path)
        if before and (row.of_video or before.of_video):
            raise ScoreTableError(
                f"{source}: {row.path} is a video with several rows; one score an image was expected: leave videos out,"
                " or score their frames as pictures"
            )
        if before is None or (row.face or 0) <= (before.face or 0):
            kept[row.path] = row
    return {name: row.quality for name, row in kept.items()}


def read_rows(path: str | Path) -> Rows:
    """All rows of a score table, in their order; the faces of an image and the frames of a video have a row each.

    By suffix: `.jsonl` and `.parquet` with the fields `path`, `status`, `quality`; `.pkl` and `.pickle`, a plain dict
    or list as eDifFIQA writes it; anything else is a table (tabs, commas or semicolons) whose header names `path` and
    `quality` (and perhaps `status`), the CSV of OFIQ, or lines `path score` as CR-FIQA writes them. `face` and `frame`
    are read where a table has them. `FILE:COLUMN` takes another column of such a table than `quality`, or than OFIQ's
    UnifiedQualityScore.scalar. Raises ScoreTableError with the line at fault.
    """
    path, column = file_and_column(path)
    reader = READERS.get(path.suffix.lower())
    if reader and column:
        raise ScoreTableError(f"{path}: a column ({column}) can be chosen in tables of text only")
    row = None
    for row in reader(path) if reader else _from_text(path, column):
        yield row
    if row is None:
        raise ScoreTableError(f"{path} holds no scores")


def file_and_column(path: str | Path) -> tuple[Path, str]:
    """`FILE:COLUMN` -> the file and the column; the column is "" for FILE alone, which may itself hold colons."""
    file, _, column = str(path).rpartition(":")
    if not column or Path(path).exists() or not Path(file).is_file():
        return Path(path), ""
    return Path(file), column


def _value(quality: Any, status: str | None = None) -> float:
    if status not in (None, "", "ok") or quality is None or (isinstance(quality, str) and not quality):
        return math.nan
    try:
        value = float(quality)
    except (TypeError, ValueError, OverflowError):
        # only text is shown: nested lists that share their parts can be endless as text
        shown = repr(quality[:80]) if isinstance(quality, str) else f"of type {type(quality).__name__}"
        raise ValueError(f"the quality {shown} is not a number") from None
    return value if math.isfinite(value) else math.nan


def _face(number: Any) -> int | None:
    """The number of a face; None for another cell of a column of that name."""
    text = str(number) if isinstance(number, int | str) else ""
    return int(text) if text.isdecimal() else None


def _name(path: Any) -> str:
    """A path as text; pickles of Python 2 hold it as bytes."""
    if isinstance(path, bytes):
        return os.fsdecode(path)
    if not isinstance(path, str):
        raise ValueError(f"a path is of type {type(path).__name__}; text was expected")
    return path


def _from_text(path: Path, column: str) -> Rows:
    with open_text(path) as file:
        head = file.readline()
        file.seek(0)
        for separator in ("\t", ",", ";"):
            columns = [name.strip('"') for name in head.strip("\r\n").split(separator)]
            if "path" in columns and (column or "quality") in columns:
                return (yield from _from_table(path, file, separator, columns, column or "quality"))
        if columns[0] == OFIQ_NAME and len(columns) > 1:
            return (yield from _from_ofiq(path, file, columns, column or OFIQ_QUALITY))
        if column:
            raise ScoreTableError(f"{path}: the header {head.strip()!r} has no path, or no column {column}")
        yield from _from_lines(path, file.read().split("\n"))  # a carriage return may be part of a name


def _from_table(path: Path, file: Iterable[str], separator: str, columns: list[str], quality_column: str) -> Rows:
    name, quality = columns.index("path"), columns.index(quality_column)
    status, face, frame = (columns.index(one) if one in columns else None for one in ("status", "face", "frame"))
    rows = csv.reader(file, delimiter=separator)
    try:
        next(rows)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} cells, expected {len(columns)}")
            path_text = csv_text(row[name]) if separator == "," else row[name]
            value = _value(row[quality], None if status is None else row[status])
            number = None if face is None else _face(row[face])
            yield ScoreRow(path_text, value, number, frame is not None and row[frame] != "")
    except (ValueError, csv.Error) as error:
        raise ScoreTableError(f"{path}, line {rows.line_num}: {error}") from None


def _from_ofiq(path: Path, file: Iterable[str], columns: list[str], wanted: str) -> Rows:
    """OFIQ's CSV (ISO/IEC 29794-5): a file name, and of each component its native value and its scalar, 0 to 100.

    A component that could not be assessed has the scalar -1 and the native value 0, in both of which it has no score.
    The header ends with a semicolon, the rows may or may not. Newer versions add `.native` to the native columns.
    """
    columns = [column for column in columns if column]
    component = wanted.removesuffix(".scalar").removesuffix(".native")
    scalar = f"{component}.scalar"
    if wanted not in columns or scalar not in columns:
        components = ", ".join(name for name in columns if name.endswith(".scalar"))
        raise ScoreTableError(f"{path}: OFIQ's table has no {wanted}; expected one of {components or 'its scalars'}")
    quality, failed = columns.index(wanted), columns.index(scalar)
    rows = csv.reader(file, delimiter=";")
    try:
        next(rows)
        for row in rows:
            if len(row) == len(columns) + 1 and not row[-1]:
                row.pop()
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} cells, expected {len(columns)}")
            yield ScoreRow(row[0], math.nan if _value(row[failed]) == OFIQ_FAILURE else _value(row[quality]))
    except (ValueError, csv.Error) as error:
        raise ScoreTableError(f"{path}, line {rows.line_num}: {error}") from None


def _from_lines(path: Path, lines: Iterable[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        match line.rsplit(None, 1):
            case []:
                continue
            case [name, score] if _is_number(score):
                yield ScoreRow(name, _value(score))
            case _:
                raise ScoreTableError(
                    f"{path}, line {number}: expected `path score`, or a header with path and quality, found {line!r}"
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_jsonl(path: Path) -> Rows:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                value = _value(row["quality"], row.get("status"))
                yield ScoreRow(_name(row["path"]), value, _face(row.get("face")), row.get("frame") is not None)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ScoreTableError(
                    f"{path}, line {number}: expected an object with path and quality ({error})"
                ) from None


def _from_parquet(path: Path) -> Rows:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ScoreTableError(f"{path} needs pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        if not path.is_file():
            raise
        raise ScoreTableError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
    if not {"path", "quality"} <= set(table.column_names):
        raise ScoreTableError(f"{path}: expected the columns path and quality, found {', '.join(table.column_names)}")
    wanted = ("path", "quality", "status", "face", "frame")
    columns = (table[name].to_pylist() if name in table.column_names else [None] * table.num_rows for name in wanted)
    for name, quality, state, face, frame in zip(*columns, strict=True):
        try:
            yield ScoreRow(from_utf8(_name(name)), _value(quality, state), _face(face), frame is not None)
        except ValueError as error:
            raise ScoreTableError(f"{path}: {error}") from None


def _from_pickle(path: Path) -> Rows:
    table = read_plain_pickle(path)
    rows = table.items() if isinstance(table, dict) else table
    if not isinstance(table, dict | list) or not all(isinstance(row, tuple | list) and len(row) >= 2 for row in rows):
        raise ScoreTableError(
            f"{path}: expected a dict of path and score, or a list of (path, score), found a {type(table).__name__}"
        )
    try:
        for row in rows:
            yield ScoreRow(_name(row[0]), _value(row[1]))
    except ValueError as error:
        raise ScoreTableError(f"{path}: {error}") from None


READERS = {".jsonl": _from_jsonl, ".parquet": _from_parquet, ".pkl": _from_pickle, ".pickle": _from_pickle}


def write_scores(path: str | Path, rows: Iterable[tuple[str, str, float]]) -> None:
    """Write `path,status,quality` rows as CSV, atomically; the quality of a row that is not `ok` is empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        write_csv_rows(file, [("path", "status", "quality")])
        write_csv_rows(file, ((name, status, f"{q:.8g}" if status == "ok" else "") for name, status, q in rows))
