"""Verify with any face recognition model: accuracy over ten folds, and true match rates at fixed false match rates.

    python -m methods.cr_fiqa.verify runs/cr_fiqa/2384backbone.pth ../shared/data/pairs/lfw_test.tsv

The model is an .onnx file, a checkpoint or `dlib`; pair lists are those of evaluate.py, .bin too. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from command_line import exit_code, keep_freed_memory, natural
from labels.recognition import load_recognizer
from methods.cr_fiqa.verification import FMRS, find_images, read_pair_set, verify


def run(args: argparse.Namespace) -> int:
    for pairs in args.pairs:  # before anything is printed
        find_images(pairs, args.images, flag="--images")
    recognizer = load_recognizer(args.fr)

    def embed(faces: Tensor) -> Tensor:
        return torch.from_numpy(recognizer.embed(faces.numpy()))

    rates = [f"tmr@{fmr:g}" for fmr in FMRS]
    print(f"| {Path(args.fr).name} | accuracy | " + " | ".join(rates) + " |\n|---|---|" + "---|" * len(rates))
    for pairs in args.pairs:
        pair_set = read_pair_set(pairs, args.images, recognizer.preprocessing, args.workers, flag="--images")
        found = verify(embed, pair_set)
        accuracy = f"{found['accuracy']:.4f} ± {found['accuracy_std']:.4f}"
        cells = [f"{found[rate]:.4f}" if rate in found else "–" for rate in rates]
        print(" | ".join([f"| {pair_set.name}", accuracy, *cells]) + " |", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        "methods.cr_fiqa.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fr", metavar="MODEL", help="face recognition model: .onnx, a checkpoint, or dlib")
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="pair lists")
    images_help = "folder that the names of the lists start from (default: that of the list, or the one above)"
    parser.add_argument("--images", default="", metavar="FOLDER", help=images_help)
    parser.add_argument("--workers", type=natural, default=2, metavar="N", help="processes that read images (2)")
    args = parser.parse_args(arguments)
    keep_freed_memory()
    return exit_code(lambda: run(args), stopped="stopped")


if __name__ == "__main__":
    sys.exit(main())
