"""Which parts of DSL-FIQA earn their place: the small network with and without them, three seeds each.

    python -m recipes.dsl_fiqa.ablation runs/dsl_fiqa/set --encoder runs/dsl_fiqa/de/degradation_encoder.safetensors

Every variant is trained for `--epochs` on the pictures of every `--every`-th photograph of the training part, and ranks
the pictures of every `--every`-th photograph of the test part. Prints the mean and the standard deviation over the
seeds of SRCC with the scores of the set: over all pictures, and over the held-out kinds. The difference from the recipe
is that of the means over the seeds, with its 95 % interval over people, which are drawn with replacement. The cost of a
crop is that of the forward pass in batches of 20, in seconds of the processor. Finished runs are kept and found again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from command_line import exit_code, keep_freed_memory, positive
from methods.dsl_fiqa.config import QUALITY_PRESETS, QualityConfig
from methods.dsl_fiqa.data import RatedSet, read_rated_set
from methods.dsl_fiqa.make_set import UNDAMAGED
from methods.dsl_fiqa.networks import load_encoder, load_quality_network
from methods.dsl_fiqa.train import train
from model.checkpoint import save_checkpoint
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa
from model.fast_dsl_fiqa import accelerate_dsl_fiqa
from model.files import write_text
from model.statistics import rank_correlation
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option
from recipes.dsl_fiqa.strength import drawn_people, held_out_kinds, predict, read_damage

VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {  # name -> whether the encoder was trained, what differs
    "light landmarks (the recipe)": (True, {}),
    "full landmarks (published)": (True, {"landmarks": "full"}),
    "no landmarks": (True, {"landmarks": "none"}),
    "no degradation learning": (False, {}),
}
CROPS = 4  # of a picture, of which the score is the mean
PARTS = ("train", "val", "test")


def thinned(folder: Path, output: Path, every: int) -> Path:
    """A set of links to the pictures of every `every`-th photograph of a set."""
    rated = read_rated_set(folder, True)
    assert rated.landmarks is not None, "they were asked for"
    damage = read_damage(rated)
    chosen = set(list(dict.fromkeys(damage.photographs.tolist()))[::every])
    rows = [row for row, photograph in enumerate(damage.photographs.tolist()) if photograph in chosen]
    for sub, files in {"img": rated.paths, "landmark": rated.landmarks}.items():
        (output / sub).mkdir(parents=True, exist_ok=True)
        for row in rows:
            link = output / sub / Path(files[row]).name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(files[row]).resolve())
    labels = {"Image": [rated.names[row] for row in rows], "MOS": rated.scores[rows].tolist()}
    write_text(output / "label.json", json.dumps(labels))
    write_text(output / "damage.tsv", (folder / "damage.tsv").read_text(encoding="utf-8"))
    return output


def untrained(encoder: Path, output: Path) -> Path:
    """A new encoder of the sizes of `encoder`, with random weights of seed 0."""
    torch.manual_seed(0)
    fresh = DegradationEncoder.shaped_like(load_encoder(encoder).state_dict())
    save_checkpoint(output, fresh.state_dict(), {"system": "dsl-fiqa-de"})
    return output


def settings(
    args: argparse.Namespace, differences: dict[str, Any], encoder: Path, seed: int, name: str
) -> QualityConfig:
    """Of a short run, in which the learning rate falls along half a cosine."""
    pictures = len(read_rated_set(args.output / "train", False).paths)
    preset = QUALITY_PRESETS["small"] | {"epochs": args.epochs, "precision": "bf16"} | differences
    folders = {"data": str(args.output / "train"), "validation": str(args.output / "val")}
    run = {"encoder": str(encoder), "output": str(args.output / f"{name} {seed}"), "seed": seed, "device": "cpu"}
    period = args.epochs * -(-pictures // preset["batch_size"])
    return QualityConfig(**preset | folders | run | {"schedule": "batch", "period": period, "num_workers": 0})


def difference(
    variant: np.ndarray, recipe: np.ndarray, scores: np.ndarray, people: np.ndarray, replicates: int = 200
) -> list[float]:
    """Mean SRCC of a variant over its seeds minus that of the recipe, and its 95 % interval over people.

    variant, recipe: predictions (seeds, N); scores: (N,); people: (N,), the person of each picture.
    """

    def mean(predictions: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([rank_correlation(one[rows], scores[rows]) for one in predictions]))

    samples = [np.arange(len(scores)), *drawn_people(people, replicates)]
    value, *drawn = (mean(variant, rows) - mean(recipe, rows) for rows in samples)
    return [value, *np.percentile(drawn, (2.5, 97.5)).tolist()]


@torch.inference_mode()
def cost(network: DslFiqa, batch: int = 20) -> float:
    """Milliseconds of the processor for a crop."""
    size, shape = network.shape.image_size, network.shape
    crops = torch.randn(batch, 3, size, size)
    landmarks = torch.rand(batch, shape.landmark_count, 2) if shape.landmarks == "light" else None
    if shape.landmarks == "full":
        landmarks = torch.rand(batch, shape.landmark_count)
    times = []
    for _ in range(3):
        began = time.process_time()
        network(crops, landmarks)
        times.append(time.process_time() - began)
    return 1000 * min(times) / batch


def results(args: argparse.Namespace) -> Iterator[list[Cell]]:
    """A row for each variant; the first one is the recipe."""
    args.output.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        thinned(args.folder / part, args.output / part, args.every)
    encoders = {True: args.encoder, False: untrained(args.encoder, args.output / "untrained.safetensors")}
    rated = read_rated_set(args.output / "test", True)
    damage = read_damage(rated)
    apart = np.flatnonzero(np.isin(damage.kinds, [*held_out_kinds(args.folder), UNDAMAGED]))
    recipe = None
    for name, (trained, differences) in VARIANTS.items():
        found = [_run(settings(args, differences, encoders[trained], seed, name), rated) for seed in range(args.seeds)]
        predictions = np.array([one["predictions"] for one in found])
        recipe = predictions if recipe is None else recipe
        spread = []
        for rows in (np.arange(len(rated.scores)), apart):
            values = [rank_correlation(one[rows], rated.scores[rows]) for one in predictions]
            spread.append([float(np.mean(values)), float(np.std(values, ddof=1))])
        against: Cell = None
        if name != next(iter(VARIANTS)):
            against = difference(predictions, recipe, rated.scores, damage.people)
        print(f"{name}: {spread}", file=sys.stderr, flush=True)
        cost_of_crop = min(one["cost"] for one in found)
        yield [name, round(found[0]["weights"] / 1e6, 2), cost_of_crop, spread[0], against, spread[1]]


def _run(config: QualityConfig, rated: RatedSet) -> dict[str, Any]:
    """Train, or find a finished run again: its number of weights, the cost of a crop, and predictions of a set."""
    file = Path(config.output) / "figures.json"
    if not file.is_file():
        network = load_quality_network(train(config))
        parts = [part for key, part in network.named_children() if key != "encoder"]
        weights = sum(weight.numel() for part in parts for weight in part.parameters())
        network = accelerate_dsl_fiqa(network, torch.float32)
        figures = {"weights": weights, "cost": cost(network), "predictions": predict(network, rated, CROPS).tolist()}
        write_text(file, json.dumps(figures))
        (Path(config.output) / "state.safetensors").unlink()  # 1.3 GB of the full layer
    return json.loads(file.read_text())


def report(args: argparse.Namespace) -> int:
    form = "{:.3f} ± {:.3f}"
    columns = [
        Column("variant"),
        Column("million weights"),
        Column("ms a crop", "{:.1f}"),
        Column("SRCC, all", form, "max"),
        Column("difference", "{:+.3f} [{:+.3f}, {:+.3f}]"),
        Column("SRCC, held-out kinds", form, "max"),
    ]
    what = f"Short trainings of equal length, mean and standard deviation of {args.seeds} seeds"
    Output(args.results, "make dsl-fiqa-reports").add("dsl_fiqa_ablation", what, columns, results(args))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the set of methods.dsl_fiqa.make_set")
    parser.add_argument("--encoder", type=Path, required=True, help="trained degradation encoder")
    parser.add_argument("--every", type=positive, default=8, help="take every so many photographs (default: 8)")
    parser.add_argument("--epochs", type=positive, default=3, help="of each training (default: 3)")
    parser.add_argument("--seeds", type=positive, default=3, help="two or more (3)")
    parser.add_argument("--output", type=Path, default=Path("runs/dsl_fiqa/ablation"), help="folder of the runs")
    add_results_option(parser)
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        parser.error("--seeds 1 has no standard deviation: two or more were expected")
    keep_freed_memory()
    return exit_code(lambda: report(args), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
