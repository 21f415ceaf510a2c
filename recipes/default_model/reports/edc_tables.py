"""The tables of docs/evaluation.md and docs/anchors.md from the output folders of `evaluate.py edc`.

    python -m recipes.default_model.reports.edc_tables edc_lfw=runs/evaluation/lfw_test --results results
    python -m recipes.default_model.reports.edc_tables edc_differences=runs/evaluation/celeba_dev,runs/edc/lfw \\
        --against clib-fiqa@foamliu --results results

NAME=FOLDER gives the table NAME of the methods that do not use the judging FR model, and NAME_same_model of those that
do. `--against METHOD` gives paired differences instead, pooled over the folders of each NAME. `--excerpt NAME` writes
the short table of README.md as well, from the tables named edc_celeba and edc_lfw.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.bench import Result
from evaluation.compare import ENOUGH_ERRORS, differences, pooled, read_runs
from evaluation.tables import DEFAULT_LIMIT, scaled_means, uses_model
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code

COMMAND = "benchmarks/evaluation_table.sh"
WHAT = f"pAUC({DEFAULT_LIMIT:g}) / (FNMR(0) * {DEFAULT_LIMIT:g}), 1 is useless, lower is better"
OURS = "clib-fiqa"  # methods whose names are printed bold
CELL = {"1": "{:.2f}", "2": "{:.4f}, {}", "3": "{:.3f} [{:.2f}, {:.2f}]"}
SETS = {"CelebA": "edc_celeba", "LFW": "edc_lfw"}
EXCERPT = {  # method -> its name in README.md
    "clib-fiqa@foamliu": "**default model**",
    "norm@foamliu": "feature norm of foamliu's FR network",
    "lightqnet": "LightQNet dm100",
    "cr-fiqa@foamliu": "our CR-FIQA, of 9,525 faces",
    "scrfd": "SCRFD detection score",
    "grafiqs@foamliu": "GraFIQs (foamliu)",
    "sobel": "sharpness (Sobel)",
}
JUDGES, EXCERPT_FMR = ("faceplugin", "dlib"), 1e-3


def read_edc(folder: Path) -> list[Result]:
    """The results of an `edc` run at the default limit. Raises ValueError when there are none."""
    file = folder / "results.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; `evaluate.py edc --output {folder}` writes it")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    at_limit = [row for row in found if row["limit"] == DEFAULT_LIMIT]
    if not at_limit:
        raise ValueError(f"{file}: no results at the limit {DEFAULT_LIMIT:g}; run edc with --limits {DEFAULT_LIMIT:g}")
    return at_limit


def table_of(results: Sequence[Result]) -> tuple[list[Column], list[list[Cell]]]:
    """A row of errors before anything is discarded, then a row a method, the best by the scaled mean first."""
    settings = list(dict.fromkeys((row["fr"], row["fmr"]) for row in results))
    cells = {(row["method"], row["fr"], row["fmr"]): row for row in results}
    means = scaled_means(results)
    columns = [Column("method"), *(Column(f"{fr} @ {power(fmr)}", CELL) for fr, fmr in settings)]
    starts = [next(row for row in results if (row["fr"], row["fmr"]) == setting) for setting in settings]
    rows: list[list[Cell]] = [["FNMR(0), errors", *(start_of(row) for row in starts), ""]]
    methods = dict.fromkeys(row["method"] for row in results)
    for method in sorted(methods, key=lambda name: means.get(name, float("inf"))):
        name = f"**{method}**" if method.startswith(OURS) else method
        values = [value_of(cells.get((method, *setting))) for setting in settings]
        rows.append([name, *values, means.get(method)])
    return [*columns, Column("scaled mean", "{:.2f}")], rows


def value_of(result: Result | None) -> Cell:
    """Relative pAUC and its interval."""
    if result is None or result["pauc_relative"] is None:
        return None
    interval = result["pauc_relative_ci"]
    return [result["pauc_relative"], *interval] if interval else [result["pauc_relative"]]


def start_of(result: Result) -> Cell:
    """FNMR before anything is discarded, and its errors."""
    fnmr, errors = result["fnmr0"], result["errors"]
    return None if fnmr is None or errors is None else [fnmr, errors]


def power(fmr: float) -> str:
    """1e-3 and not 0.001."""
    return f"{fmr:.0e}".replace("e-0", "e-")


def excerpt_rows(sets: Mapping[str, Sequence[Result]]) -> list[list[Cell]]:
    """The relative pAUC of some methods at FMR 1e-3; `sets` are in the order of the columns."""
    found = {
        (name, row["fr"], row["method"]): row["pauc_relative"]
        for name, results in sets.items()
        for row in results
        if row["fmr"] == EXCERPT_FMR
    }
    return [[name, *(found[s, judge, method] for s in sets for judge in JUDGES)] for method, name in EXCERPT.items()]


def difference_rows(folders: Sequence[Path], method: str) -> list[list[Cell]]:
    """A row for each other method: the pooled difference with its interval, and in how many cells METHOD is lower; over
    the cells of enough errors, and over all cells in which the judge made neither quality. A method that is not in all
    sets has its sets behind its name."""
    found = differences(read_runs(folders), method, DEFAULT_LIMIT)
    sets = {other: dict.fromkeys(d.set for d in found if d.other == other) for other in {d.other for d in found}}
    most = max(map(len, sets.values()))
    tables = pooled(found)
    enough, every = (
        {row["other"]: row for row in tables.get(title, [])}
        for title in (f"cells of at least {ENOUGH_ERRORS} errors", "all these cells")
    )
    rows: list[list[Cell]] = []
    for other, row in every.items():
        cells: list[Cell] = [other if len(sets[other]) == most else f"{other} ({', '.join(sets[other])})"]
        for pool in (enough.get(other), row):
            if pool is None:
                cells += [None, None]
                continue
            interval = pool["difference_ci"] or (float("nan"), float("nan"))
            cells += [[pool["difference"], *interval], [pool["lower"], pool["cells"]]]
        rows.append(cells)
    return sorted(rows, key=lambda row: -row[3][0] if isinstance(row[3], list) else 0)


def report(args: argparse.Namespace) -> int:
    named = dict(text.partition("=")[::2] for text in args.folders)
    if bad := [name for name, folder in named.items() if not name or not folder]:
        raise ValueError(f"{bad[0]!r}: NAME=FOLDER was expected")
    output = Output(args.results, args.command, args.weights)
    if args.against:
        number, share = "{:+.3f} [{:+.3f}, {:+.3f}]", "{} of {}"
        columns = [Column(f"`{args.against}` minus")]
        for title in (f"cross-model cells of at least {ENOUGH_ERRORS} errors", "all their cross-model cells"):
            columns += [Column(title, number), Column("lower in", share)]
        for name, folders in named.items():
            paths = [Path(folder) for folder in folders.split(",")]
            sets = ", ".join(path.name for path in paths)
            rows = difference_rows(paths, args.against)
            output.add(name, f"{WHAT}: paired differences, pooled over {sets}", columns, rows)
        return 0
    found = {name: read_edc(Path(folder)) for name, folder in named.items()}
    for name, results in found.items():
        cross = [row for row in results if not uses_model(row["method"], row["fr"])]
        output.add(name, f"{WHAT}; 95 % intervals by identity", *table_of(cross))
        same = [row for row in results if uses_model(row["method"], row["fr"])]
        if same:
            what = f"{WHAT}; 95 % intervals by identity; methods that use the judging FR model"
            output.add(f"{name}_same_model", what, *table_of(same))
    if args.excerpt:
        if missing := SETS.values() - found.keys():
            raise ValueError(f"--excerpt needs the tables {', '.join(SETS.values())}; missing: {', '.join(missing)}")
        columns = [Column(""), *(Column(f"{name}, {judge}", "{:.3f}", "min") for name in SETS for judge in JUDGES)]
        rows = excerpt_rows({name: found[table] for name, table in SETS.items()})
        output.add(args.excerpt, f"{WHAT}, at FMR {power(EXCERPT_FMR)}", columns, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help="output folders of evaluate.py edc")
    parser.add_argument("--against", default="", metavar="METHOD", help="paired differences; NAME=FOLDER,FOLDER,…")
    parser.add_argument("--excerpt", default="", metavar="NAME", help="also the short table of README.md")
    parser.add_argument("--command", default=COMMAND, help=f"what makes these tables again ({COMMAND})")
    parser.add_argument("--weights", nargs="*", default=[], help="the models that were judged, for --results")
    return report_exit_code(parser, report, arguments, "stopped; the finished tables are above")


if __name__ == "__main__":
    sys.exit(main())
