"""A run of 100 million pictures, from measured processor times: products of results/, nothing is run here.

    python benchmarks/sizing.py --results results        after benchmarks/scale.py, soak.py and raw_photographs.py

`tests/test_results.py` fails when results/sizing.json is not what the other files give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from recipes.default_model.reports.results import Cell, Column, Output, read_result, report_exit_code  # noqa: E402

PICTURES = 100_000_000
HOSTS, CORES = 8, 32
USD = 0.04   # of a core for an hour
KB_CROP, KB_PHOTOGRAPH = 6, 80   # of a JPEG file
COLUMNS = [
    Column("pictures"),
    Column("processor ms a picture, measured", "{:.1f}"),
    Column("core hours", "{:,.0f}"),
    Column(f"hours of {HOSTS} hosts of {CORES} cores", "{:.1f}"),
    Column("TB to read", "{:.1f}"),
    Column("GB to read a second", "{:.2f}"),
    Column("USD", "{:,.0f}"),
    Column("USD a million", "{:.2f}"),
]


def rows_of(results: Path) -> list[list[Cell]]:
    """A row for each kind of picture, by the processor times in this folder."""
    soak = {row[0]: row[1] for row in read_result(results / "soak.json").rows}
    scale = max((row for row in read_result(results / "scale.json").rows if row[0] == "crops"), key=lambda row: row[2])
    photographs = {row[0]: row[1] for row in read_result(results / "raw_photographs_speed.json").rows}
    return [
        sized("crops of 112x112, `--align no`", soak["processor ms an image, last fifth"], KB_CROP),
        sized("crops of 112x112, each checked (the default)", scale[7], KB_CROP),
        sized("photographs of 640x480", photographs["`--rotate no`"], KB_PHOTOGRAPH),
        sized("photographs of 640x480, `--rotate auto`", photographs["`--rotate auto`"], KB_PHOTOGRAPH),
    ]


def sized(what: str, milliseconds: Cell, kilobytes: int) -> list[Cell]:
    if not isinstance(milliseconds, float):
        raise ValueError(f"{what}: the processor time of a picture is not measured")
    core_hours = PICTURES * milliseconds / 1000 / 3600
    hours = core_hours / (HOSTS * CORES)
    terabytes = PICTURES * kilobytes / 1e9
    rate, price = 1000 * terabytes / (3600 * hours), USD * core_hours
    return [what, milliseconds, core_hours, hours, terabytes, rate, price, 1e6 * price / PICTURES]


def run(args: argparse.Namespace) -> int:
    output = Output(args.results, "python benchmarks/sizing.py --results results", ["clib-fiqa"])
    output.add("sizing", f"A run of {PICTURES:,} pictures, computed", COLUMNS, rows_of(ROOT / "results"))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return report_exit_code(parser, run, None)


if __name__ == "__main__":
    sys.exit(main())
