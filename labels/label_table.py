"""The label table: one face a row, with its quality anchor and its five factor labels, as tab-separated UTF-8 text.

Written by generate_labels.py and read by train.py. The reader also takes the rows of CLIB-FIQA's published code, which
have no header, may be separated by spaces, and may hold their quality as `[[0.58]]`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import chain
from pathlib import Path

from model.files import open_text, replacing
from model.prompts import AXES


@dataclass
class Label:
    """One row. A factor is the index of its level in `AXES` (higher is better); `quality` is the raw quality anchor, or
    None without one; `identity` and `status` (ok, no_face) are None in tables without these columns."""

    path: str
    quality: float | None
    blur: int
    pose: int
    expression: int
    illumination: int
    occlusion: int
    identity: str | None = None
    status: str | None = None


COLUMNS = tuple(field.name for field in fields(Label))
REQUIRED = COLUMNS[:7]
_LEVELS = {factor: {str(index): index for index in range(len(AXES[factor]))} for factor in REQUIRED[2:]}


def read_labels(path: str | Path) -> list[Label]:
    """The rows of a label table, in file order. Columns of other names are left alone.

    Raises ValueError, with the number of the line and what was expected there, for a table that breaks the format.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:   # no row ends at a "\r"
        lines = [(number, text) for number, line in enumerate(file, 1) if (text := line.rstrip("\r\n")).strip()]
    if not lines:
        raise ValueError(f"{path} is empty; a label table starts with the header {' '.join(REQUIRED)} (tab-separated)")
    columns: Sequence[str] = REQUIRED
    if lines[0][1].split()[0] == "path":
        columns = lines.pop(0)[1].split("\t")
        if absent := [name for name in REQUIRED if name not in columns]:
            raise ValueError(f"{path}: the header lacks {', '.join(absent)}; its tab-separated columns are {columns}")
    parse = _parser(columns)
    labels = []
    for number, line in lines:
        try:
            labels.append(parse(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return labels


def write_labels(path: str | Path, labels: Iterable[Label]) -> None:
    """Write the table with all nine columns, atomically. Raises ValueError for a row that the format cannot hold."""
    rows: Iterable[Sequence[str]] = (["" if c is None else _text(c) for c in astuple(label)] for label in labels)
    _write_atomically(Path(path), ("\t".join(row) for row in chain([COLUMNS], rows)))


def write_skipped(table_path: str | Path, skipped: Iterable[tuple[str, str]]) -> Path:
    """Write (path, status) of the images that got no row to the side file of the table, and return its path.

    Tabs and line ends in a path are written as \\t, \\n, \\r. With nothing skipped, a side file of an earlier run goes.
    """
    side = Path(f"{table_path}.skipped.tsv")
    escapes = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
    rows = [f"{path.translate(escapes)}\t{status}" for path, status in skipped]
    if rows:
        _write_atomically(side, ["path\tstatus", *rows])
    else:
        side.unlink(missing_ok=True)
    return side


def is_storable(path: str) -> bool:
    """Whether a table can hold this path: it has no tab and no line end."""
    return not any(character in path for character in "\t\n\r")


def resolve(label: Label, table_path: str | Path) -> str:
    """Where the image of a row lies: relative paths start at the folder of the table."""
    return os.path.join(os.path.dirname(table_path), label.path)  # a Path would be slow for millions of rows


def _parser(columns: Sequence[str]) -> Callable[[str], Label]:
    """`_parse` for the rows of a table, several times as fast for those that are plainly right: tables are long."""
    places = [columns.index(name) if name in columns else None for name in COLUMNS]
    path, quality, *factors, identity, status = places
    assert path is not None
    assert quality is not None
    levels = [(place, _LEVELS[name]) for place, name in zip(factors, REQUIRED[2:], strict=True) if place is not None]
    width = len(columns)

    def parse(line: str) -> Label:
        cells = line.split("\t")
        try:
            value = float(cells[quality])
            blur, pose, expression, light, occlusion = [level[cells[place]] for place, level in levels]
        except (ValueError, KeyError, IndexError):
            return _parse(line, columns)
        if len(cells) != width or not cells[path] or not math.isfinite(value):
            return _parse(line, columns)
        person = (cells[identity] or None) if identity is not None else None
        state = (cells[status] or None) if status is not None else None
        return Label(cells[path], value, blur, pose, expression, light, occlusion, person, state)

    return parse


def _parse(line: str, columns: Sequence[str]) -> Label:
    cells = line.split("\t")
    if len(cells) == 1 and columns is REQUIRED:   # published rows may be separated by spaces, and paths may hold some
        cells = line.rsplit(maxsplit=len(REQUIRED) - 1)
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} tab-separated cells where {len(columns)} were expected: {' '.join(columns)}")
    row = dict(zip(columns, cells, strict=True))
    if not row["path"]:
        raise ValueError("the path is empty")
    return Label(
        row["path"],
        _quality(row["quality"]),
        identity=row.get("identity") or None,
        status=row.get("status") or None,
        **{factor: _level(factor, row[factor]) for factor in REQUIRED[2:]},
    )


def _quality(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text.strip("[] "))   # the published code prints a 1x1 array
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"quality is {text!r}; a finite number, or nothing, was expected")
    return value


def _level(factor: str, text: str) -> int:
    if text not in _LEVELS[factor]:
        meaning = ", ".join(f"{index} {name}" for index, name in enumerate(AXES[factor]))
        raise ValueError(f"{factor} is {text!r}; one of {meaning} was expected")
    return _LEVELS[factor][text]


def _text(cell: str | float | int) -> str:
    if not isinstance(cell, str):
        return repr(float(cell)) if isinstance(cell, float) else str(int(cell))
    if not is_storable(cell):
        raise ValueError(f"{cell!r} holds a tab or a line end, which a label table cannot hold; rename the file")
    return cell


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
