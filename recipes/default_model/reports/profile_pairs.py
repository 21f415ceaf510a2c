"""Pairs of a frontal and a profile photograph, of the faces of CFP: all mated pairs and 60,000 non-mated ones.

    python -m recipes.default_model.reports.profile_pairs --output runs/evaluation/cfp_profiles.tsv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from command_line import exit_code, natural, positive
from evaluation.pairs import write_pairs
from recipes.default_model.crops import cfp_faces

SEED = 3


def frontal_profile_pairs(faces: Sequence[tuple[str, str]], non_mated: int, seed: int) -> list[tuple[str, str, int]]:
    """Rows of a pair list from (identity, name) of each face, where a profile's file name begins with p.

    Non-mated pairs are drawn without repetition. Raises ValueError when there are fewer of them than asked for."""
    kinds: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for identity, name in faces:
        kinds[Path(name).name.startswith("p")].append((identity, name))
    every = [(a, b, identity == other) for identity, a in kinds[False] for other, b in kinds[True]]
    mated = [(a, b, 1) for a, b, same in every if same]
    others = [(a, b, 0) for a, b, same in every if not same]
    if non_mated > len(others):
        raise ValueError(f"{non_mated} non-mated pairs of {len(others)} were asked for")
    chosen = np.sort(np.random.default_rng(seed).choice(len(others), non_mated, replace=False))
    return mated + [others[row] for row in chosen.tolist()]


def run(args: argparse.Namespace) -> int:
    faces = [(identity, path.relative_to(args.data).as_posix()) for identity, path in cfp_faces(args.data)]
    rows = frontal_profile_pairs(faces, args.non_mated, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_pairs(args.output, rows)
    print(f"{args.output}: {len(rows) - args.non_mated} mated and {args.non_mated} non-mated pairs")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/cfp")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation/cfp_profiles.tsv"), metavar="PAIRS.tsv")
    parser.add_argument("--non-mated", type=positive, default=60_000, metavar="N", help="(60000)")
    parser.add_argument("--seed", type=natural, default=SEED)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
