"""Are the factors' probabilities true on people who trained nothing?

    python -m recipes.default_model.reports.calibration --data ../shared/data --results results

The calibration of the weights was fitted on LFW's training identities (`recipes/default_model/calibrate.py`). This
measures it on LFW's test identities, made in the same way: the first crop of each, as it is and in two damaged
versions, and human labels of the expression. Other sets, with other shares of good faces, are in
`reports/reliability.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from command_line import positive
from model.calibration import Calibration, calibrated
from model.checkpoint import read_checkpoint
from model.prompts import FACTORS
from recipes.default_model.calibrate import known_levels
from recipes.default_model.crops import first_of_each, lfw_test_paths
from recipes.default_model.reports.reliability import Labelled, Reliability
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from scoring import Scorer

COLUMNS = [
    Column("factor"),
    Column("faces"),
    Column("calibration error before", "{:.3f}"),
    Column("calibration error", "{:.3f}"),
]


def calibration_rows(weights: str, data: Path, cache: Path, every: int) -> Iterator[list[Cell]]:
    """A row for each factor: faces, expected calibration error of the best level without and with the calibration."""
    paths = lfw_test_paths(data)
    crops, known = map(list, zip(*known_levels(data, cache, first_of_each(paths)[::every], paths), strict=True))
    scorer = Scorer(weights=weights, calibrated=False)
    calibration = Calibration.from_metadata(read_checkpoint(scorer.weights)[1])
    if calibration is None:
        raise ValueError(f"{scorer.weights} holds no calibration: run python -m recipes.default_model.calibrate")
    scores = scorer.score(crops)
    for factor in FACTORS:
        rows = [i for i, one in enumerate(known) if factor in one]
        labelled = Labelled(factor, "", [], np.array([known[i][factor] for i in rows]))
        raw = np.array([list(scores[i].factors[factor].values()) for i in rows])
        scaled = calibrated(torch.from_numpy(raw), calibration.factors[factor]).numpy()
        errors = [Reliability(labelled, some).calibration_error() for some in (raw, scaled)]
        yield [factor, len(rows), *errors]


def run(args: argparse.Namespace) -> int:
    command = "python -m recipes.default_model.reports.calibration" + f" --every {args.every}" * (args.every > 1)
    output = Output(args.results, command, [args.weights])
    rows = calibration_rows(args.weights, args.data, args.cache, args.every)
    output.add("calibration", "Calibration of the factors on LFW's test identities", COLUMNS, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="clib-fiqa", help="name or file")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with faces/, factors/ and splits/")
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="every N-th identity (default: all)")
    cache = Path("runs/landmarks_test.npz")
    parser.add_argument("--cache", type=Path, default=cache, help="dlib's landmarks of each face, found once")
    return report_exit_code(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
