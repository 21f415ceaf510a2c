"""Is one method better than another? Paired differences of the relative pAUC, in each cell and pooled over cells.

A cell is a pair set under an FR model at an FMR target. Replicates of the bootstrap draw the same identities for every
method. A draw that is hard for all methods therefore changes their differences little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bench import Result
from evaluation.bootstrap import interval
from evaluation.edc import Floats
from evaluation.embeddings import DAMAGE
from evaluation.tables import Table, as_markdown, uses_model
from model.files import replacing, write_text

REPLICATES = "replicates.npy"  # beside results.json: float32 (results, R)
ENOUGH_ERRORS = 100  # cells with fewer errors can only reveal clear damage


@dataclass(frozen=True)
class EdcRun:
    """What `edc` found on one pair set."""

    name: str
    results: Sequence[Result]
    replicates: Floats  # (results, R) relative pAUC of the bootstrap; NaN where there is none


@dataclass(frozen=True)
class Difference:
    """Relative pAUC of METHOD minus that of another one in a cell: below 0 METHOD is better."""

    other: str
    set: str
    fr: str
    fmr: float
    errors: int
    same_model: bool  # the judging FR model made one of the two qualities
    pauc_relative: float
    other_pauc_relative: float
    replicates: Floats  # (R,) of the difference


# what is pooled and shown together
SELECTIONS: dict[str, Callable[[Difference], bool]] = {
    f"cells of at least {ENOUGH_ERRORS} errors": lambda d: not d.same_model and d.errors >= ENOUGH_ERRORS,
    f"cells of fewer than {ENOUGH_ERRORS} errors, which can only reveal clear damage": (
        lambda d: not d.same_model and d.errors < ENOUGH_ERRORS
    ),
    "all these cells": lambda d: not d.same_model,
    "same model: the judge made one of the two qualities": lambda d: d.same_model,
}
REPEATED = "all these cells"  # each of its cells is shown in another selection


def write_replicates(folder: Path, replicates: Sequence[Floats]) -> None:
    """Write the replicates of each result, (R,) each. Without replicates, the file of an earlier run is removed."""
    path = folder / REPLICATES
    if not len(replicates) or not len(replicates[0]):
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(replicates, np.float32))


def read_runs(folders: Sequence[str | Path]) -> list[EdcRun]:
    """The output folders of several `edc` runs, named after the folders, or by their paths where names repeat.

    Raises ValueError for a folder without replicates, or with another number of them than the first.
    """
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    runs = [_read_run(path, name) for path, name in zip(paths, names, strict=True)]
    counts = {run.name: run.replicates.shape[1] for run in runs}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the folders hold different numbers of replicates, {counts}: give each edc one --bootstrap")
    return runs


def _read_run(folder: Path, name: str) -> EdcRun:
    if not (folder / "results.json").is_file() or not (folder / REPLICATES).is_file():
        raise ValueError(
            f"{folder} holds no results.json with {REPLICATES}: make them with evaluate.py edc --output {folder}"
            " (protocol iso, --bootstrap above 0)"
        )
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
        replicates = np.load(folder / REPLICATES)
    except DAMAGE as error:
        raise ValueError(f"{folder} is damaged ({type(error).__name__}); run evaluate.py edc again") from None
    if replicates.ndim != 2 or len(replicates) != len(results):
        raise ValueError(f"{folder}: {len(replicates)} rows of replicates and {len(results)} results; run edc again")
    return EdcRun(name, results, replicates.astype(np.float64))


def differences(runs: Sequence[EdcRun], method: str, limit: float) -> list[Difference]:
    """METHOD minus every other method, in each cell in which both have a relative pAUC at this discard limit.

    Raises ValueError when METHOD is not in every run at this limit, or when there is nothing to compare it with.
    """
    found = []
    for run in runs:
        rows = {(r["method"], r["fr"], r["fmr"]): i for i, r in enumerate(run.results) if r["limit"] == limit}
        methods = dict.fromkeys(name for name, _, _ in rows)
        if method not in methods:
            raise ValueError(f"{run.name} has no method {method!r} at the limit {limit:g}; there are: {_named(run)}")
        for (other, fr, fmr), i in rows.items():
            own = rows[method, fr, fmr]
            if other != method and run.results[i]["pauc_relative"] is not None:
                found.append(_difference(run, own, i))
    if not found:
        raise ValueError(f"there is nothing to compare {method} with: no cell with errors has another method")
    return found


def _named(run: EdcRun) -> str:
    limits = ", ".join(f"{limit:g}" for limit in dict.fromkeys(r["limit"] for r in run.results))
    return f"{', '.join(dict.fromkeys(r['method'] for r in run.results))}; limits {limits}"


def _difference(run: EdcRun, own: int, other: int) -> Difference:
    mine, theirs = run.results[own], run.results[other]
    value, other_value, errors = mine["pauc_relative"], theirs["pauc_relative"], mine["errors"]
    assert value is not None, "whether a cell has a relative pAUC does not depend on the method"
    assert other_value is not None
    assert errors is not None
    return Difference(
        other=theirs["method"],
        set=run.name,
        fr=mine["fr"],
        fmr=mine["fmr"],
        errors=errors,
        same_model=uses_model(mine["method"], mine["fr"]) or uses_model(theirs["method"], mine["fr"]),
        pauc_relative=value,
        other_pauc_relative=other_value,
        replicates=run.replicates[own] - run.replicates[other],
    )


def pool(cells: Sequence[Difference]) -> dict[str, Any]:
    """Means over the cells: each method's relative pAUC, their difference and its interval; and counts of cells.

    A replicate that drew no error of a cell leaves that cell out of its mean.
    """
    intervals = [interval(cell.replicates) for cell in cells]
    own = float(np.mean([cell.pauc_relative for cell in cells]))
    other = float(np.mean([cell.other_pauc_relative for cell in cells]))
    replicates = np.stack([cell.replicates for cell in cells])  # (cells, R)
    known = ~np.isnan(replicates)
    replicates = replicates[:, known.any(axis=0)]
    return {
        "other": cells[0].other,
        "cells": len(cells),
        "lower": sum(cell.pauc_relative < cell.other_pauc_relative for cell in cells),
        "wholly_below": sum(ci is not None and ci[1] < 0 for ci in intervals),
        "wholly_above": sum(ci is not None and ci[0] > 0 for ci in intervals),
        "pauc_relative": own,
        "other_pauc_relative": other,
        "difference": own - other,
        "difference_ci": interval(np.nanmean(replicates, axis=0)),
    }


def pooled(found: Sequence[Difference]) -> dict[str, list[dict[str, Any]]]:
    """For each selection that has cells, `pool` for each other method, the strongest first."""
    selected = {title: [d for d in found if holds(d)] for title, holds in SELECTIONS.items()}
    return {
        title: sorted(
            (pool([c for c in cells if c.other == other]) for other in dict.fromkeys(c.other for c in cells)),
            key=lambda row: row["other_pauc_relative"],
        )
        for title, cells in selected.items() if cells
    }


def comparison_tables(found: Sequence[Difference], method: str, limit: float) -> list[Table]:
    """For each selection its pooled differences, then (once for each cell) those of its cells."""
    made = []
    for title, rows in pooled(found).items():
        heading = f"{method} minus others, pAUC({limit:g}) / (FNMR(0) · {limit:g}), below 0 is better: {title}"
        made.append(_pooled_table(heading, method, rows))
        if title != REPEATED:
            made.append(_cell_table(title, method, [d for d in found if SELECTIONS[title](d)]))
    return made


def _pooled_table(title: str, method: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    header = ["other", "cells", f"mean {method}", "mean other", "difference", "lower in", "wholly below 0", "above 0"]
    body = [
        [
            row["other"], str(row["cells"]), f"{row['pauc_relative']:.3f}", f"{row['other_pauc_relative']:.3f}",
            _signed(row["difference"], row["difference_ci"]),
            *(str(row[key]) for key in ("lower", "wholly_below", "wholly_above")),
        ]
        for row in rows
    ]  # fmt: skip
    return Table(title, header, body)


def _cell_table(title: str, method: str, cells: Sequence[Difference]) -> Table:
    others = list(dict.fromkeys(cell.other for cell in cells))
    rows: dict[tuple[str, str, float], dict[str, Difference]] = {}
    for cell in cells:
        rows.setdefault((cell.set, cell.fr, cell.fmr), {})[cell.other] = cell
    body = []
    for (name, fr, fmr), row in rows.items():
        any_cell = next(iter(row.values()))
        shown = [_signed(_value(row[o]), interval(row[o].replicates)) if o in row else "–" for o in others]
        body.append([f"{name}: {fr} @ {fmr:g}", str(any_cell.errors), f"{any_cell.pauc_relative:.3f}", *shown])
    return Table(f"{title}, one by one", ["cell", "errors", method, *(f"minus {other}" for other in others)], body)


def _value(cell: Difference) -> float:
    return cell.pauc_relative - cell.other_pauc_relative


def _signed(value: float, ci: Sequence[float] | None) -> str:
    return f"{value:+.3f}" + (f" [{ci[0]:+.3f}, {ci[1]:+.3f}]" if ci else "")


def write_comparison(found: Sequence[Difference], method: str, limit: float, folder: Path) -> None:
    """Write `differences.json` (all cells and what was pooled) and `differences.md`."""
    kept = ("other", "set", "fr", "fmr", "errors", "same_model", "pauc_relative", "other_pauc_relative")
    cells = [
        {key: getattr(d, key) for key in kept} | {"difference": _value(d), "difference_ci": interval(d.replicates)}
        for d in found
    ]
    record = {"method": method, "limit": limit, "pooled": pooled(found), "cells": cells}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "differences.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    text = "\n\n".join(map(as_markdown, comparison_tables(found, method, limit)))
    write_text(folder / "differences.md", text + "\n")
