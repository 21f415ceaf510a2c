"""Store the quantiles of a checkpoint's qualities on a named set of images in that checkpoint (model/percentiles.py).

    python -m recipes.default_model.percentiles weights/clib_fiqa_tiny.safetensors @runs/lfw_test.txt \\
        --set "LFW test identities"

The file is written again with the same tensors. The set should be well known. None of its images should have been used
in training, because networks score their training images too high.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tqdm import tqdm

from command_line import exit_code, natural
from faces.listing import expand_inputs
from model.checkpoint import read_checkpoint, save_checkpoint
from model.percentiles import Percentiles
from scoring import Scorer


def store_percentiles(weights: Path, paths: Sequence[str], name: str, workers: int) -> Percentiles:
    """Score the images and write their quantiles into the checkpoint. Raises ValueError when a score is missing."""
    if weights.suffix != ".safetensors":
        raise ValueError(f"{weights}: only .safetensors have metadata, and the table goes there")
    scores = list(tqdm(Scorer(weights=weights).stream(paths, workers), total=len(paths), unit=" images", disable=None))
    if failed := [score for score in scores if score.quality is None]:
        raise ValueError(f"{len(failed)} of {len(scores)} images have no score, such as {failed[0]}")
    percentiles = Percentiles.of_set(name, np.array([score.quality for score in scores]))
    metadata = read_checkpoint(weights)[1]
    save_checkpoint(weights, load_file(weights), metadata | {"percentiles": percentiles.to_json()})
    return percentiles


def run(args: argparse.Namespace) -> int:
    paths = list(expand_inputs(args.images, sys.stdin))
    percentiles = store_percentiles(args.weights, paths, args.set, args.workers)
    shown = ", ".join(f"{p} %: {percentiles.quality[p]:.4g}" for p in (0, 5, 25, 50, 75, 95, 100))
    print(f"{args.weights}: {percentiles.set}, {percentiles.images} images; {shown}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path, help="checkpoint, .safetensors")
    parser.add_argument("images", nargs="+", metavar="PATH", help="the set: files, folders, patterns, @list")
    parser.add_argument("--set", required=True, metavar="NAME", help='what to call it, such as "LFW test identities"')
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes that read images (0)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the checkpoint is as it was")


if __name__ == "__main__":
    sys.exit(main())
