"""How the cost of inference.py grows with the number of images: time, memory, and the rate at the start and at the end.

    python benchmarks/scale.py --images 100000 --paths 1000 10000 100000 1000000 --workers 0 2

`--paths` are numbers of paths without a file behind them: what listing, rows and tables cost. `--images` real crops of
112x112 pixels, made of the samples, are then scored. All is read from the run's own journal and from /proc, so this
script runs on Linux. The rate at the start and at the end is that of the first and of the last fifth of the rows. So
are the processor milliseconds a row, which other work on the same cores hardly changes. With --results the rows of
runs that are not made now stay as they were, so the table can be measured in parts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.service import processor_seconds  # noqa: E402
from recipes.default_model.reports.results import Column, read_result, write_results  # noqa: E402

DISTINCT = 500   # pictures; the others are hard links to them
EVERY = 0.5   # seconds between two looks at a run
SHORT = 2.0   # seconds: a fifth that took less has no rate


class Cost(NamedTuple):
    """One run."""

    rows: int
    seconds: float
    start_rate: float | None   # rows a second of the first fifth; None when it took less than a look
    end_rate: float | None
    start_processor: float | None   # processor ms a row of the first fifth
    end_processor: float | None
    start_memory: float | None   # MB of the main process and its readers after the first fifth of the rows
    peak_memory: float


def make_crops(folder: Path, count: int) -> list[str]:
    """Crops of 112x112 pixels: random parts of the samples at random brightness."""
    samples = [Image.open(path).convert("RGB") for path in sorted((ROOT / "samples").glob("*.png"))]
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = folder / f"{index // 1000:04}" / f"{index:07}.jpg"
        path.parent.mkdir(exist_ok=True)
        if index < DISTINCT:
            picture = samples[index % len(samples)].resize((128, 128))
            left, top = random.integers(0, 16, 2)
            picture = picture.crop((left, top, left + 112, top + 112))
            ImageEnhance.Brightness(picture).enhance(random.uniform(0.6, 1.2)).save(path, quality=95)
        else:
            os.link(paths[index % DISTINCT], path)
        paths.append(str(path))
    return paths


def cost_of(paths: Sequence[str], folder: Path, workers: int) -> Cost:
    """Run inference.py on a list of paths, and watch it."""
    listing, output = folder / "list.txt", folder / "scores.csv"
    listing.write_text("\n".join(paths) + "\n")
    command = [sys.executable, str(ROOT / "inference.py"), f"@{listing}", "--output", str(output)]
    looks = [(0.0, 0, 0.0, 0.0)]   # seconds, rows, MB, processor seconds
    start, rows, end = time.perf_counter(), 0, 0
    journal = Path(f"{output}.partial")
    with subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(EVERY)
            if journal.is_file():
                try:
                    with open(journal, "rb") as file:
                        file.seek(end)
                        new = file.read()
                except FileNotFoundError:   # the run has just finished
                    continue
                rows, end = rows + new.count(b"\n"), end + len(new)
            used = time.perf_counter() - start, max(0, rows - 1), memory_of(process.pid), tree_seconds(process.pid)
            looks.append(used)
    seconds = time.perf_counter() - start
    with open(output, "rb") as table:
        assert sum(1 for _ in table) == len(paths) + 1
    last = max(look[1] for look in looks)   # rows that were seen in the journal, which the finished run removes
    at = [next(look for look in looks if look[1] >= count) for count in (min(1, last), last / 5, 4 * last / 5, last)]
    parts = [(at[0], at[1]), (at[2], at[3])]
    rates = [(b[1] - a[1]) / (b[0] - a[0]) if b[0] - a[0] > SHORT else None for a, b in parts]
    costs = [1000 * (b[3] - a[3]) / (b[1] - a[1]) if b[0] - a[0] > SHORT else None for a, b in parts]
    memory = at[1][2] if at[1][1] < last else None, max(look[2] for look in looks)
    return Cost(len(paths), seconds, rates[0], rates[1], costs[0], costs[1], *memory)


def memory_of(pid: int) -> float:
    """MB of memory that a process and its children hold alone or share with each other (proportional set size)."""
    total = 0.0
    for process in (pid, *children_of(pid)):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:   # it has ended
            continue
        total += next((int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:")), 0.0)
    return total


def tree_seconds(pid: int) -> float:
    """Processor seconds of a process and its children."""
    total = 0.0
    for process in (pid, *children_of(pid)):
        try:
            total += processor_seconds(process)
        except (OSError, IndexError):   # it has ended
            continue
    return total


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    """Print a line for each run; with --results write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="real crops (default 100000; 0: none)")
    paths = [1000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--paths", type=int, nargs="*", default=paths, help="missing paths (default 1000 to 1000000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="reading processes (default 0 2)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write FOLDER/scale.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = [("missing paths", [f"/nowhere/{i:09}.jpg" for i in range(count)]) for count in args.paths]
        if args.images:
            runs.append(("crops", make_crops(folder, args.images)))
        for workers in args.workers:
            for what, paths in runs:
                cost = cost_of(paths, folder, workers)
                rates = ", ".join("-" if rate is None else f"{rate:.0f}" for rate in (cost.start_rate, cost.end_rate))
                print(f"{what}, {workers} workers: {cost.rows:,} rows in {cost.seconds:.1f} s; "
                      f"a second at the start and at the end: {rates}; "
                      f"{cost.start_memory or 0:.0f} MB after a fifth, {cost.peak_memory:.0f} MB at most", flush=True)
                if args.results:
                    write_row(args.results / "scale.json", [what, workers, *cost])


def write_row(file: Path, row: list[Any]) -> None:
    """Write the table with this row in its place."""
    rows = [row, *(old for old in (read_result(file).rows if file.is_file() else ()) if list(old[:3]) != row[:3])]
    columns = [Column("input"), Column("workers"), Column("rows", "{:,}"), Column("seconds", "{:.1f}"),
               Column("a second, first fifth", "{:.0f}"), Column("a second, last fifth", "{:.0f}"),
               Column("processor ms a row, first fifth", "{:.2f}"), Column("processor ms a row, last fifth", "{:.2f}"),
               Column("MB after a fifth", "{:.0f}"), Column("MB at most", "{:.0f}")]  # fmt: skip
    crops = max((row[2] for row in rows if row[0] == "crops"), default=0)
    command = f"python benchmarks/scale.py --images {crops} --results results"
    rows.sort(key=lambda row: (row[0] == "crops", *row[1:3]))
    write_results(file, "Cost of inference.py against the number of images", command, columns, rows, ["clib-fiqa"])


if __name__ == "__main__":
    main()
