"""Scores of CelebA faces by models that never saw their identities: cross-fitting over folds of identities.

The identities are split into folds. For each fold one command trains on the others, a second one scores the fold, and
in the end the held-out scores of all folds are one table for `evaluate.py edc`. In both commands `{folder}` stands for
the folder of the fold, which holds

    train.txt      images to train on, one path a line
    test.txt       images to score, for `python inference.py @{folder}/test.txt`
    scores.csv     must be written by the second command

    python -m methods.default_model.cross_fit --data ../shared/data --folds 5 --output runs/cross_fit \\
        --train "python train_somehow.py --images {folder}/train.txt --output {folder}/model.safetensors" \\
        --score "python inference.py @{folder}/test.txt --weights {folder}/model.safetensors \\
            --output {folder}/scores.csv"

A fold that has its scores is not run again: another recipe needs another --output. Qualities of different folds are
pooled as they are: the recipe has to give each fold the same scale.
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from command_line import exit_code, natural
from evaluation.scores import read_scores, write_scores
from faces.listing import list_images
from methods.default_model.crops import NEVER_TRAIN


def split(identities: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """The identities in folds of equal size (up to one), each sorted. Raises ValueError for fewer than two folds."""
    if not 2 <= folds <= len(identities):
        raise ValueError(f"{folds} folds of {len(identities)} identities: expected from 2 to {len(identities)}")
    order = np.random.default_rng(seed).permutation(sorted(identities)).tolist()
    return [sorted(order[fold::folds]) for fold in range(folds)]


def write_lists(folder: Path, images: Mapping[str, Sequence[Path]], held_out: Sequence[str]) -> None:
    """train.txt and test.txt of a fold. images: identity -> its images. Who may never train is scored all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    train = [path for name in images if name not in {*held_out, *NEVER_TRAIN} for path in images[name]]
    test = [path for name in held_out for path in images[name]]
    for name, paths in (("train.txt", train), ("test.txt", test)):
        (folder / name).write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")


def run_fold(folder: Path, commands: Sequence[str]) -> None:
    """Train and score, unless the scores are there. Raises RuntimeError when a command fails or writes no scores."""
    if (folder / "scores.csv").is_file():
        return
    for command in commands:
        words = [word.replace("{folder}", str(folder)) for word in shlex.split(command)]
        if code := subprocess.run(words).returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with exit code {code}")
    if not (folder / "scores.csv").is_file():
        raise RuntimeError(f"the commands ended without {folder / 'scores.csv'}")


def pool(folders: Sequence[Path], output: Path) -> int:
    """One table of all folds' held-out scores; how many rows. Raises ValueError when an image has no row, or two."""
    rows = []
    for folder in folders:
        scores = read_scores(folder / "scores.csv")
        wanted = (folder / "test.txt").read_text(encoding="utf-8").splitlines()
        if scores.keys() != set(wanted):
            different = sorted(scores.keys() ^ set(wanted))
            raise ValueError(f"{folder}: scores.csv and test.txt differ in {len(different)} images: {different[:3]}")
        rows += [(path, "failed" if math.isnan(scores[path]) else "ok", scores[path]) for path in wanted]
    write_scores(output, rows)
    return len(rows)


def run(args: argparse.Namespace) -> int:
    faces = args.data / "faces" / "celeba"
    images = {folder.name: list_images(folder) for folder in sorted(faces.iterdir()) if folder.is_dir()}
    folders = [args.output / f"fold_{fold}" for fold in range(args.folds)]
    for folder, held_out in zip(folders, split(list(images), args.folds, args.seed), strict=True):
        write_lists(folder, images, held_out)
        print(f"{folder}: {len(held_out)} identities held out", flush=True)
        run_fold(folder, (args.train, args.score))
    count = pool(folders, args.output / "scores.csv")
    print(f"{count} held-out scores -> {args.output / 'scores.csv'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong or a command failed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/celeba")
    parser.add_argument("--output", type=Path, default=Path("runs/cross_fit"), help="folder to fill")
    parser.add_argument("--train", required=True, metavar="COMMAND", help="with {folder}: trains on {folder}/train.txt")
    parser.add_argument("--score", required=True, metavar="COMMAND", help="with {folder}: writes {folder}/scores.csv")
    parser.add_argument("--folds", type=natural, default=5, help="(5)")
    parser.add_argument("--seed", type=natural, default=323, help="of the split (323)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the same command goes on with the unfinished folds")


if __name__ == "__main__":
    sys.exit(main())
