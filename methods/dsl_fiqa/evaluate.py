"""Score a set in the published layout and compare the scores with its mean opinion scores.

    python -m methods.dsl_fiqa.evaluate FOLDER --weights IQA.pt --degradation-encoder DE.pt --output predictions.csv
    python -m methods.dsl_fiqa.evaluate FOLDER --weights small.safetensors --output predictions.csv --landmarks no

Writes a CSV with the columns Name, Predict, GT, Error (Predict - GT). Prints the figures as JSON, and writes them to
PREDICTIONS.csv.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from command_line import exit_code, keep_freed_memory, natural
from methods.dsl_fiqa.data import RatedSet, normalised, read_pictures, read_rated_set, score_pictures
from methods.dsl_fiqa.evaluation import agreement
from methods.dsl_fiqa.networks import load_quality_network
from model.device import pick_device
from model.fast import PRECISIONS, pick_precision
from model.fast_dsl_fiqa import accelerate_dsl_fiqa
from model.files import only_writer, open_text, printable, replacing, write_csv_rows, write_text


def evaluate(args: argparse.Namespace) -> int:
    """Exit code 0, or 1 when a picture could not be read; its row is empty then."""
    with only_writer(args.output):
        return evaluate_alone(args)


def evaluate_alone(args: argparse.Namespace) -> int:
    """`evaluate`, in the only run that writes this table."""
    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device)
    network = accelerate_dsl_fiqa(load_quality_network(args.weights, args.degradation_encoder).to(device), dtype)
    reads = network.shape.landmarks != "none" and args.landmarks == "yes"
    rated = read_rated_set(args.folder, landmarks=reads)
    pictures, bad = read_pictures(rated, network.shape, "no", args.workers)
    for path, status in bad.items():
        print(printable(f"left out: {path} ({status})"), file=sys.stderr)
    scores = score_pictures(network, pictures, device, dtype)
    predicted = np.full(len(rated.paths), np.nan)
    predicted[pictures.usable] = scores
    write_predictions(Path(args.output), rated, predicted)
    opinions = normalised(rated.scores) if args.normalise == "yes" else rated.scores
    figures: dict[str, Any] = {"set": str(args.folder), "pictures": len(scores), "left_out": len(bad)}
    figures |= agreement(scores, opinions[pictures.usable], args.replicates)
    write_text(f"{args.output}.json", json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 1 if bad else 0


def write_predictions(path: Path, rated: RatedSet, predicted: np.ndarray) -> None:
    """The published columns; the cells of a picture without a prediction are empty."""
    rows: list[tuple[Any, ...]] = [("Name", "Predict", "GT", "Error")]
    for name, value, opinion in zip(rated.names, predicted.tolist(), rated.scores.tolist(), strict=True):
        known = value == value
        rows.append((name, f"{value:.7g}" if known else "", opinion, f"{value - opinion:.7g}" if known else ""))
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        write_csv_rows(file, rows)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "methods.dsl_fiqa.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a folder with label.json, img/ and landmark/")
    parser.add_argument("--weights", required=True, help="IQA.pt, or a file of our training")
    parser.add_argument("--degradation-encoder", help="DE.pt, for weights that hold none")
    parser.add_argument("--output", required=True, metavar="PREDICTIONS.csv")
    parser.add_argument("--landmarks", choices=("yes", "no"), default="yes", help="read landmark/; no: score without")
    parser.add_argument("--normalise", choices=("yes", "no"), default="no", help="bring the set's scores to [0, 1]")
    parser.add_argument("--replicates", type=natural, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--workers", type=natural, default=2)
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0, 1 when pictures were left out, 2 for a call that was wrong, 130 for Ctrl-C."""

    def run() -> int:
        keep_freed_memory()
        return evaluate(parse_arguments())

    return exit_code(run, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
