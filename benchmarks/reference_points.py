"""How well does the detector that made the reference points repeat them?

    python benchmarks/reference_points.py ../shared/data --results results

The points of DATA/raw/points.tsv are SCRFD's, found in the photograph brought to 256 pixels. The same network looks at
the same photographs again, brought to another size, or mirrored. How far its points then lie from the reference, and
how the default model's scores of the two alignments agree, says what `benchmarks/raw_photographs.py` can reach: a
difference of this size is the reference's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from benchmarks.raw_photographs import PLACED, point_error, qualities  # noqa: E402
from command_line import positive  # noqa: E402
from faces.reader import read_image  # noqa: E402
from faces.template import ARCFACE_POINTS, SIZE, warp  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402
from recipes.raw_photographs.scrfd import open_scrfd, scrfd_points  # noqa: E402
from recipes.raw_photographs.train_points import originals  # noqa: E402
from scoring import Scorer  # noqa: E402

PADDING = 0.25  # of the longer side, on each side
COLUMNS = [
    Column("the reference's detector"),
    Column("originals"),
    Column("mean point error, % of the eye distance", "{:.1f}"),
    Column("rank correlation with the crops' scores", "{:.4f}"),
]


def measured_rows(data: Path, every: int) -> Iterator[list[Cell]]:
    session = open_scrfd(data)
    chosen = list(originals(data))[::every]
    scorer = Scorer("clib-fiqa", device="cpu")
    reference = qualities(scorer, [read_image(data / "faces" / path) for path, _ in chosen])
    for name, side, mirrored in (
        ("as the reference was made, 256 pixels", 256, False),
        ("320 pixels", 320, False),
        ("256 pixels, mirrored", 256, True),
    ):
        errors, crops, kept = [], [], []
        for i, (path, points) in enumerate(chosen):
            rgb = read_image(data / "raw" / path)
            for found in scrfd_points(session, rgb, PADDING, side, mirrored):
                if (error := point_error(found, points)) < PLACED:
                    errors.append(error)
                    crops.append(warp(rgb, found, ARCFACE_POINTS, SIZE))
                    kept.append(i)
                    break
        rho = float(spearmanr(qualities(scorer, crops), reference[kept])[0])
        yield [name, len(kept), 100 * float(np.mean(errors)), rho]


def run(args: argparse.Namespace) -> int:
    command = "python benchmarks/reference_points.py ../shared/data" + f" --every {args.every}" * (args.every > 1)
    output = Output(args.results, command, ["clib-fiqa"])
    what = "How the reference's detector repeats its points"
    output.add("reference_points", what, COLUMNS, measured_rows(args.data, args.every))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data folder of docs/data.md")
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="take every N-th original (1)")
    return report_exit_code(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
