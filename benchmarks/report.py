"""The report of many faces: its size, how fast a browser opens it, and what a step of scrolling costs.

    python benchmarks/report.py                    reports of 1,000, 10,000 and 100,000 faces; needs a Chromium

The pictures are those of samples/, so writing costs less than for as many different files.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from chromium import running_chromium  # noqa: E402

from command_line import positive  # noqa: E402
from model.prompts import AXES, FACTORS  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402
from scoring import report  # noqa: E402

COLUMNS = [
    Column("faces", "{:,}"),
    Column("file, MB", "{:.1f}"),
    Column("opens in, s", "{:.1f}"),
    Column("threshold moved, ms", "{:.0f}"),
    Column("screen scrolled, ms", "{:.1f}"),
    Column("faces in the document", "{:.0f}"),
    Column("memory of the script, MB", "{:.0f}"),
]
TIMEOUT_MS = 500_000
SCROLL = """async () => {
  const times = [];
  for (let k = 1; k <= 40; k++) {
    window.scrollTo(0, k * innerHeight);
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    draw(true);
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[20];
}"""
MOVE = "() => { const start = performance.now(); setThreshold(0.5); update(); return performance.now() - start; }"


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows with all that `scoring.tables.row_of` gives."""
    source, samples = random.Random(0), sorted((ROOT / "samples").glob("*.png"))
    for i in range(count):
        factors = {}
        for factor in FACTORS:
            parts = [source.random() for _ in AXES[factor]]
            factors[factor] = {level: part / sum(parts) for level, part in zip(AXES[factor], parts, strict=True)}
        quality = source.betavariate(5, 2) * 0.8 + 0.1
        path, distribution = str(samples[i % len(samples)]), [0.1, 0.1, 0.2, 0.4, 0.2]
        yield {"path": path, "status": "ok", "quality": quality, "factors": factors, "percentile": 50.0,
               "quality_distribution": distribution, "face": i}  # fmt: skip


def visit(file: Path) -> tuple[float, list[float]]:
    """Seconds until the report is ready, and what the columns behind them hold."""
    with running_chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(TIMEOUT_MS)
        start = time.perf_counter()
        page.goto(file.as_uri(), wait_until="commit")
        page.wait_for_selector("body[data-ready=yes]")
        ready = time.perf_counter() - start
        measured = [page.evaluate(MOVE), page.evaluate(SCROLL), page.locator(".card").count()]
        return ready, [*measured, page.evaluate("performance.memory.usedJSHeapSize / 1e6")]


def table(counts: list[int], scratch: Path) -> Iterator[list[Cell]]:
    file = scratch / "report.html"
    about = {"model": "", "created": "", "range": (0.1, 0.9), "percentile_set": None}
    for count in counts:
        report.write_report(file, rows(count), count, about)
        ready, measured = visit(file)
        yield [count, file.stat().st_size / 1e6, ready, *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", nargs="+", type=positive, default=[1_000, 10_000, 100_000])
    add_results_option(parser)
    args = parser.parse_args()
    report._picture = lru_cache(report._picture)  # type: ignore[assignment]  # the same few files again and again
    with tempfile.TemporaryDirectory() as scratch:
        output = Output(args.results, "python benchmarks/report.py")
        output.add("report", "Reports of many faces in a browser", COLUMNS, table(args.faces, Path(scratch)))


if __name__ == "__main__":
    main()
