"""Workers and threads of inference.py, on a quiet and on a busy machine.

    python benchmarks/threads.py ../shared/data/faces/lfw          # as the machine is, and beside two busy loops
    python benchmarks/threads.py FACES --busy 0 --threads 1 2 4 --workers 0 1 2 4

Each row is one setting: how OpenMP threads wait for each other (active: they spin, passive: they sleep), torch threads
and reading processes. Every setting runs once in each round, as a process of its own. Images a second leave start-up
out, and are those of the median round; processor time an image is that of all processes of the run, start-up included.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import natural, positive  # noqa: E402
from faces.listing import list_images  # noqa: E402
from model.cores import available_cores  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402

COLUMNS = [
    Column("busy loops"),
    Column("waiting threads"),
    Column("threads"),
    Column("workers"),
    Column("images/s", "{:.0f}"),
    Column("processor ms an image", "{:.1f}"),
]


class Setting(NamedTuple):
    wait: str
    threads: int
    workers: int


class Run(NamedTuple):
    rate: float  # images a second
    cpu: float  # seconds


def score(setting: Setting, listed: Path, weights: str, output: Path) -> Run:
    """Score the list with inference.py."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, str(ROOT / "inference.py"), f"@{listed}", "--weights", weights, "--output", str(output)]
    command += ["--device", "cpu", "--threads", str(setting.threads), "--workers", str(setting.workers)]
    before = cpu_of_children()
    environment["OMP_WAIT_POLICY"] = setting.wait.upper()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, seconds = re.findall(r"(\d+) ok in ([\d.]+) s", done.stderr)[0]
    return Run(int(count) / float(seconds), cpu_of_children() - before)


def cpu_of_children() -> float:
    """Processor time of all child processes that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Other work on the machine: processes that never rest."""
    loops = [multiprocessing.Process(target=burn, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def burn() -> None:
    while True:
        sum(range(100_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder of aligned crops")
    parser.add_argument("--count", type=positive, default=800, help="images to score (800)")
    parser.add_argument("--weights", default="clib-fiqa", help="(clib-fiqa)")
    parser.add_argument("--wait", nargs="+", choices=("active", "passive"), default=["active", "passive"])
    parser.add_argument("--threads", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--workers", nargs="+", type=natural, default=[0, 1, 2])
    parser.add_argument("--busy", nargs="+", type=natural, default=[0, 2], help="busy loops beside the run (0 2)")
    parser.add_argument("--rounds", type=positive, default=3, help="(3)")
    add_results_option(parser)
    args = parser.parse_args()
    settings = [
        Setting(wait, threads, workers)
        for wait, threads, workers in itertools.product(args.wait, args.threads, args.workers)
        if threads > 1 or wait == args.wait[-1]  # one thread waits for nobody
    ]
    what = f"Workers and threads of inference.py: {args.weights}, {args.count} crops, {available_cores()} cores"
    output = Output(args.results, "python benchmarks/threads.py FACES", [args.weights])
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "list.txt"
        listed.write_text("".join(f"{path.absolute()}\n" for path in list_images(args.faces)[: args.count]))
        output.add("threads", what, COLUMNS, rows(args, settings, listed))


def rows(args: argparse.Namespace, settings: list[Setting], listed: Path) -> Iterator[list[Cell]]:
    """A row of the table for each setting, first on the machine as it is, then beside busy loops."""
    for loops in args.busy:
        with busy_loops(loops):
            rounds = [
                [score(setting, listed, args.weights, listed.with_name("scores.csv")) for setting in settings]
                for _ in range(args.rounds)
            ]
        for setting, runs in zip(settings, zip(*rounds, strict=True), strict=True):
            rate, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
            wait = "–" if setting.threads == 1 else "spin" if setting.wait == "active" else "sleep"
            yield [loops, wait, setting.threads, setting.workers, rate, 1000 * cpu / args.count]


if __name__ == "__main__":
    main()
