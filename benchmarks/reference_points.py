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
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from benchmarks.raw_photographs import PLACED, point_error, qualities  # noqa: E402
from command_line import positive  # noqa: E402
from faces.reader import read_image  # noqa: E402
from faces.template import ARCFACE_POINTS, SIZE, warp  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402
from recipes.raw_photographs.train_points import MIRRORED, originals  # noqa: E402
from scoring import Scorer  # noqa: E402

PADDING = 0.25  # of the longer side, on each side
CANDIDATE = 0.3  # score
ANCHORS = 2  # of each cell
COLUMNS = [
    Column("the reference's detector"),
    Column("originals"),
    Column("mean point error, % of the eye distance", "{:.1f}"),
    Column("rank correlation with the crops' scores", "{:.4f}"),
]


def scrfd_points(session: Any, rgb: np.ndarray, side: int, mirrored: bool) -> list[np.ndarray]:
    """The five points (5, 2) of each candidate in a picture that is padded and brought to this longer side."""
    margin = round(PADDING * max(rgb.shape[:2]))
    padded = cv2.copyMakeBorder(rgb, *[margin] * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    padded = np.ascontiguousarray(padded[:, ::-1]) if mirrored else padded
    scale = side / max(padded.shape[:2])
    height, width = (round(n * scale) for n in padded.shape[:2])
    picture = np.zeros((side, side, 3), np.float32)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture[:height, :width] = cv2.resize(padded, (width, height), interpolation=way)
    outputs = session.run(None, {session.get_inputs()[0].name: ((picture - 127.5) / 128).transpose(2, 0, 1)[None]})
    found = []
    for level, stride in enumerate((8, 16, 32)):
        scores, offsets = outputs[level].ravel(), outputs[level + 6].reshape(-1, 5, 2)
        for cell in np.flatnonzero(scores > CANDIDATE):
            row, column = divmod(int(cell) // ANCHORS, side // stride)
            points = ((column, row) + offsets[cell] + 0.5 / stride) * stride / scale - 0.5
            if mirrored:
                points = ((padded.shape[1] - 1, 0) + points * (-1, 1))[MIRRORED]
            found.append((float(scores[cell]), points - margin))
    return [points for _, points in sorted(found, key=lambda one: -one[0])]


def measured_rows(data: Path, every: int) -> Iterator[list[Cell]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(data / "detector" / "scrfd_2.5g_bnkps.onnx"), options)
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
            for found in scrfd_points(session, rgb, side, mirrored):
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
