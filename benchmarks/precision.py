"""How far a score moves with the precision and with the pictures beside it, of the default model on a CPU.

    python benchmarks/precision.py ../shared/data/faces/lfw --results results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from command_line import positive  # noqa: E402
from faces.listing import list_images  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402
from scoring import Scorer  # noqa: E402

COMPARED = (  # what, and the precision and batch size of both sides
    ("fp32, batches of 1 and of 16", ("fp32", 1), ("fp32", 16)),
    ("bf16, batches of 1 and of 16", ("bf16", 1), ("bf16", 16)),
    ("bf16 and fp32", ("bf16", 16), ("fp32", 16)),
)
COLUMNS = [
    Column("compared"),
    Column("images", "{:,}"),
    Column("largest difference of a score, millionths", "{:,.1f}"),
    Column("99 % of the scores differ by at most, millionths", "{:,.1f}"),
    Column("largest difference of a probability, millionths", "{:,.1f}"),
    Column("rank correlation", "{:.6f}"),
]


def scores_of(paths: list[str], precision: str, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Qualities (N,) and all probabilities of the factors (N, levels)."""
    scorer = Scorer(device="cpu", precision=precision, align="no", batch_size=batch_size)
    scores = list(scorer.stream(paths))
    factors = [[p for levels in score.factors.values() for p in levels.values()] for score in scores]
    return np.array([score.quality for score in scores], float), np.array(factors)


def rows_of(paths: list[str]) -> Iterator[list[Cell]]:
    sides = sorted({side for _, *both in COMPARED for side in both})
    found = {side: scores_of(paths, *side) for side in sides}
    for what, one, other in COMPARED:
        moved = np.abs(found[one][0] - found[other][0])
        probabilities = np.abs(found[one][1] - found[other][1]).max()
        correlation = spearmanr(found[one][0], found[other][0]).statistic
        largest = [1e6 * value for value in (moved.max(), np.quantile(moved, 0.99), probabilities)]
        yield [what, len(paths), *largest, correlation]


def run(args: argparse.Namespace) -> int:
    images = list_images(args.faces)
    paths = [str(path) for path in images[:: max(1, len(images) // args.count)][: args.count]]
    command = f"python benchmarks/precision.py LFW --count {args.count} --results results"
    output = Output(args.results, command, ["clib-fiqa"])
    output.add("precision", "Scores in other precisions and batches", COLUMNS, rows_of(paths))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder of aligned crops")
    parser.add_argument("--count", type=positive, default=1000, metavar="N", help="images (default 1000)")
    return report_exit_code(parser, run, None)


if __name__ == "__main__":
    sys.exit(main())
