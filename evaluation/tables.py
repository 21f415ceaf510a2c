"""Results as tables: terminal, CSV, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bench import Result
from model.files import open_text, replacing, write_csv_rows, write_text

LIMITS = (0.2, 0.3, 0.4)
DEFAULT_LIMIT = 0.3


@dataclass(frozen=True)
class Table:
    """Relative pAUC of methods (rows) under FR models and FMR targets (columns) at one discard limit."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(results: Sequence[Result], limits: Sequence[float]) -> list[Table]:
    """For each limit a table of the methods that do not use the judging FR model, then one of those that do.

    A method that uses an FR model is named METHOD@MODEL, one that uses several METHOD@MODEL@MODEL.
    """
    found = []
    for limit in limits:
        at_limit = [result for result in results if result["limit"] == limit]
        cross = [r for r in at_limit if not uses_model(r["method"], r["fr"])]
        same = [r | {"method": _without(r["method"], r["fr"])} for r in at_limit if uses_model(r["method"], r["fr"])]
        title = f"pAUC({limit:g}) / (FNMR(0) · {limit:g})"
        found += [_table(f"{title}: 1 is useless, lower is better", cross)] if cross else []
        found += [_table(f"{title}: methods that use the judging FR model", same)] if same else []
    return found


def uses_model(method: str, fr: str) -> bool:
    """Whether the quality METHOD@MODEL... comes from the FR model that judges it."""
    return fr in method.split("@")[1:]


def _without(method: str, fr: str) -> str:
    name, *models = method.split("@")
    return "@".join([name, *(model for model in models if model != fr)])


def limits_of(results: Iterable[Result], first: float) -> list[float]:
    """The discard limits in ascending order, but `first` first."""
    return sorted({result["limit"] for result in results}, key=lambda limit: (limit != first, limit))


def _table(title: str, results: Sequence[Result]) -> Table:
    columns = list(dict.fromkeys((r["fr"], r["fmr"]) for r in results))
    methods = list(dict.fromkeys(r["method"] for r in results))
    cell = {(r["method"], r["fr"], r["fmr"]): r for r in results}
    start = ["FNMR(0), errors", *(_start(next(r for r in results if (r["fr"], r["fmr"]) == c)) for c in columns), ""]
    means = scaled_means(results)
    rows = [
        [m, *(_cell(cell.get((m, *column))) for column in columns), f"{means[m]:.2f}" if m in means else "–"]
        for m in sorted(methods, key=lambda m: means.get(m, np.inf))
    ]
    return Table(title, ["method", *(f"{fr} @ {fmr:g}" for fr, fmr in columns), "scaled mean"], [start, *rows])


def scaled_means(results: Sequence[Result]) -> dict[str, float]:
    """For each method the mean over the columns of its pAUC, scaled to 0 (the best method there) ... 1 (the worst)."""
    scaled: dict[str, list[float]] = {}
    for setting in dict.fromkeys((r["fr"], r["fmr"]) for r in results):
        values = {r["method"]: r["pauc"] for r in results if (r["fr"], r["fmr"]) == setting and r["pauc"] is not None}
        if len(values) > 1:
            low, high = min(values.values()), max(values.values())
            for method, value in values.items():
                scaled.setdefault(method, []).append((value - low) / (high - low) if high > low else 0.0)
    return {method: float(np.mean(values)) for method, values in scaled.items()}


def _start(result: Result) -> str:
    return f"{result['fnmr0']:.4f}, {result['errors']}" if result["resolvable"] else "too few pairs"


def _cell(result: Result | None) -> str:
    if result is None or result["pauc_relative"] is None:
        return "–"
    interval = result["pauc_relative_ci"]
    return f"{result['pauc_relative']:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def as_text(table: Table) -> str:
    """For the terminal: columns aligned with spaces."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    body = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([table.title, *body])


def as_markdown(table: Table) -> str:
    """A pipe table under its title."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in escaped)])


def as_latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    replaced = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--", "·": r"$\cdot$"})
    lines = [r" & ".join(cell.translate(replaced) for cell in line) + r" \\" for line in [table.header, *table.rows]]
    begin = rf"\begin{{tabular}}{{l{'c' * (len(table.header) - 1)}}} \toprule"
    title = f"% {table.title}"
    return "\n".join([title, begin, lines[0], r"\midrule", *lines[1:], r"\bottomrule \end{tabular}"])


def write_tables(results: Sequence[Result], limits: Sequence[float], folder: Path) -> None:
    """Write `tables.csv` (every number, one line a result), `tables.md` and `tables.tex`."""
    with replacing(folder / "tables.csv") as temporary, open_text(temporary, "w") as file:
        write_csv_rows(file, [list(results[0]), *map(_csv_row, results)])
    found = tables(results, limits)
    write_text(folder / "tables.md", "\n\n".join(map(as_markdown, found)) + "\n")
    write_text(folder / "tables.tex", "\n\n".join(map(as_latex, found)) + "\n")


def _csv_row(result: Result) -> list[Any]:
    interval = result["pauc_relative_ci"]
    return list((result | {"pauc_relative_ci": f"{interval[0]} {interval[1]}" if interval else ""}).values())
