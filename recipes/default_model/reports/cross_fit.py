"""Scores of CelebA and CFP faces by models that never saw their identities: cross-fitting over folds of identities.

The identities of the pair lists are split into folds. For each fold a model is trained by the recipe of the default
model on all rows of the label table except those of its identities, and scores the fold. In the end every face of the
lists has a score. Scores of different folds are on one scale, because the anchors are. The identity that must never
train (crops.py) is scored too, because it is in the pair list. A person of CFP is the LFW identity that the data names.

    python -m recipes.default_model.reports.cross_fit --pairs ../shared/data/pairs/celeba_dev.tsv \\
        runs/evaluation/cfp_profiles.tsv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from command_line import exit_code, keep_freed_memory, natural
from evaluation.scores import write_scores
from labels.label_table import read_labels
from recipes.default_model.crops import cfp_faces
from recipes.default_model.recipe import evaluation_levels, fit_without, recipe, scores, training_faces

SET = "pairs/celeba_dev.tsv"


def fold_of(identities: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Identity -> its fold; folds are of equal size up to one. Raises ValueError for fewer than two folds."""
    names = sorted(set(identities))
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} identities: expected from 2 to {len(names)}")
    order = np.random.default_rng(seed).permutation(names).tolist()
    return {name: position % folds for position, name in enumerate(order)}


def owners(images: Sequence[str], data: Path) -> list[str]:
    """The identity of each image, as the label table names it."""
    known: dict[str, str] = {}
    if any("faces/cfp/" in image for image in images):
        known = {path.relative_to(data).as_posix(): identity for identity, path in cfp_faces(data)}
    return [known.get(image, PurePosixPath(image).parent.name) for image in images]


def run(args: argparse.Namespace) -> int:
    config = recipe(args.tables / "train.tsv", args.tables / "tiny.safetensors")
    parts = [evaluation_levels(args.data, file, config, args.tables) for file in args.pairs]
    images, image_levels = [name for names, _ in parts for name in names], torch.cat([levels for _, levels in parts])
    owner = owners(images, args.data)
    folds = fold_of(owner, args.folds, args.seed)
    faces = training_faces(config)
    fold = torch.tensor([folds.get(str(label.identity), -1) for label in read_labels(config.data_list)])
    held_out = torch.tensor([folds[name] for name in owner])
    quality = np.empty(len(images))
    for index in range(args.folds):
        model = fit_without(config, faces, fold == index)
        rows = (held_out == index).nonzero()[:, 0]
        quality[rows] = scores(model, image_levels[rows])
        print(f"fold {index}: scored {len(rows)} images", file=sys.stderr, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_scores(args.output, [(image, "ok", value) for image, value in zip(images, quality.tolist(), strict=True)])
    print(f"{len(images)} held-out scores -> {args.output}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with pairs/ and faces/")
    parser.add_argument("--tables", type=Path, default=Path("runs/default"), help="train.tsv and start weights")
    pairs_help = f"lists whose images are scored, with paths below the data folder (its {SET})"
    parser.add_argument("--pairs", type=Path, nargs="+", metavar="PAIRS.tsv", help=pairs_help)
    parser.add_argument("--output", type=Path, default=Path("runs/cross_fit.csv"), metavar="FILE.csv")
    parser.add_argument("--folds", type=natural, default=3, help="(3)")
    parser.add_argument("--seed", type=natural, default=323, help="of the split (323)")
    args = parser.parse_args(arguments)
    args.pairs = args.pairs or [args.data / SET]
    keep_freed_memory()
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
