"""One score table from several: the mean of the ranks that an image has in each of them, from 0 (worst) to 1 (best).

    python -m recipes.ediffiqa_t.mean_ranks diffiqa.csv norm.csv --output mean.csv

Ranks are used since the scores of two methods have no common scale. Equal scores share the mean of their ranks. Names
match as in evaluate.py. An image that is missing in a table is an error; so is one without a quality.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from command_line import exit_code
from evaluation.inputs import read_qualities
from evaluation.names import match_names
from evaluation.scores import write_scores


def mean_ranks(qualities: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Qualities (N,) of each method -> mean ranks (N,) in [0, 1]; N is at least 2."""
    ranks: NDArray[np.float64] = np.mean([rankdata(quality) - 1 for quality in qualities], axis=0)
    return ranks / (len(ranks) - 1)


def run(args: argparse.Namespace) -> int:
    tables = [read_qualities(path) for path in args.tables]
    names = list(tables[0])
    if len(names) < 2:
        raise ValueError(f"{args.tables[0]} has one image; two or more were expected, since one has no rank")
    qualities = [np.array(list(tables[0].values()))]
    for path, table in zip(args.tables[1:], tables[1:], strict=True):
        qualities.append(np.array(list(table.values()))[match_names(names, list(table), str(path))])
    means = mean_ranks(qualities).tolist()
    write_scores(args.output, [(name, "ok", mean) for name, mean in zip(names, means, strict=True)])
    print(f"{args.output}: {len(names)} images, mean ranks of {len(tables)} tables")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", metavar="SCORES", help="score tables of the same images")
    parser.add_argument("--output", type=Path, required=True, metavar="SCORES.csv", help="the table to write")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
