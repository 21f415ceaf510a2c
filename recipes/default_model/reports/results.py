"""Measured tables as JSON: `results/NAME.json`, from which `make docs-tables` renders the tables of the docs.

A file says what was measured, by which command, when, on which processor, and with which weights. A cell is a text,
a number, a list of numbers (a value with its interval or its count), or null where nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

from command_line import exit_code, keep_freed_memory
from model.checkpoint import sha256_of
from model.files import write_text
from model.weights import WEIGHTS, find_weights

Cell: TypeAlias = str | float | Sequence[float] | None


@dataclass(frozen=True)
class Column:
    """A column of a table. `format` is a format string for the numbers of a cell, such as "{:.3f} [{:.2f}, {:.2f}]";
    a mapping gives one for each count of numbers ("2", "3"). The best value of the column is printed bold."""

    name: str
    format: str | Mapping[str, str] = "{}"
    best: Literal["", "min", "max"] = ""


@dataclass(frozen=True)
class Result:
    """A measured table and where it comes from. `weights` maps names of weights to their sha256."""

    what: str
    command: str
    date: str  # ISO 8601
    machine: str
    weights: Mapping[str, str]
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def write_results(
    path: Path,
    what: str,
    command: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    weights: Iterable[str] = (),
) -> Result:
    """Write a table that was measured today on this machine, atomically; `weights` are names or files."""
    hashes = {name_of(item): sha256_of(find_weights(item)) for item in weights}
    rounded = [[_rounded(cell) for cell in row] for row in rows]
    result = Result(what, command, date.today().isoformat(), processor(), hashes, columns, rounded)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_json(result))
    return result


@dataclass(frozen=True)
class Output:
    """Where a report goes: every table is printed as Markdown, and written to FOLDER/NAME.json when there is a folder.

    `command` is how to repeat the report, `weights` are the names or files that it measures."""

    folder: Path | None
    command: str
    weights: Sequence[str] = ()

    def add(self, name: str, what: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        """Print a table row by row as soon as it is measured, and write it when it is complete."""
        print(f"{what}\n\n{_line(column.name for column in columns)}\n{_line('---' for _ in columns)}")
        measured = []
        for row in rows:
            cells = zip(columns, row, strict=True)
            print(_line(_text(column, cell, None) for column, cell in cells), flush=True)
            measured.append(row)
        print(flush=True)
        if self.folder is not None:
            write_results(self.folder / f"{name}.json", what, self.command, columns, measured, self.weights)


def add_results_option(parser: argparse.ArgumentParser) -> None:
    help_text = "also write each table as FOLDER/NAME.json; `results` for the docs, then `make docs-tables`"
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=help_text)


def report_exit_code(
    parser: argparse.ArgumentParser,
    report: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
    stopped: str = "stopped; nothing was written",
) -> int:
    """Read the command line of a report, which also has --results, and run it: `command_line.exit_code`."""
    add_results_option(parser)
    args = parser.parse_args(arguments)
    keep_freed_memory()
    return exit_code(lambda: report(args), stopped)


def as_json(result: Result) -> str:
    """A column and a row a line, so that a difference between two versions can be read."""
    parts = []
    for key, value in asdict(result).items():
        if key in ("columns", "rows"):
            lines = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            parts.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_result(path: Path) -> Result:
    """Raises ValueError when the file holds no result, or rows of another length than its columns."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        result = Result(**found | {"columns": [Column(**column) for column in found["columns"]]})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no result as write_results writes it ({error})") from error
    if wrong := [row for row in result.rows if len(row) != len(result.columns)]:
        raise ValueError(f"{path}: the row {wrong[0]} does not have {len(result.columns)} cells")
    return result


def as_markdown(result: Result) -> str:
    """A pipe table, without a line end behind it."""
    bests = [_best(column, [row[i] for row in result.rows]) for i, column in enumerate(result.columns)]
    lines = [_line(column.name for column in result.columns), _line("---" for _ in result.columns)]
    for row in result.rows:
        cells = zip(result.columns, row, bests, strict=True)
        lines.append(_line(_text(column, cell, best) for column, cell, best in cells))
    return "\n".join(lines)


def name_of(weights: str) -> str:
    """The name of known weights, else the name of the file."""
    known = [item.name for item in WEIGHTS if weights == item.name or Path(weights).name == item.file]
    return known[0] if known else Path(weights).name


def processor() -> str:
    """The type of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _numbers(cell: Cell) -> list[float]:
    if cell is None or isinstance(cell, str):
        return []
    return [cell] if isinstance(cell, int | float) else [*cell]


def _best(column: Column, cells: Sequence[Cell]) -> float | None:
    values = [numbers[0] for cell in cells if (numbers := _numbers(cell))]
    return None if not (column.best and values) else min(values) if column.best == "min" else max(values)


def _text(column: Column, cell: Cell, best: float | None) -> str:
    numbers = _numbers(cell)
    if not numbers:
        return "–" if cell is None else str(cell)
    form = column.format if isinstance(column.format, str) else column.format[str(len(numbers))]
    text = form.format(*numbers)
    return f"**{text}**" if numbers[0] == best else text


def _rounded(cell: Any) -> Any:
    """Six decimals are more than any table shows; integers stay integers."""
    if isinstance(cell, (list, tuple)):
        return [_rounded(value) for value in cell]
    if cell is None or isinstance(cell, str):
        return cell
    return int(cell) if isinstance(cell, Integral) else round(float(cell), 6)
