"""How well simple statistics of a picture tell the strength of damage, and of which kinds when these were held out.

    python -m recipes.dsl_fiqa.simple_statistics runs/dsl_fiqa/set --results results

A ceiling and a floor for `recipes.dsl_fiqa.strength`. Undamaged pictures of the training part are damaged in all kinds,
and a small network learns the strength from statistics: grey levels of each channel, differences between neighbours in
four directions at four scales, and the borders of JPEG's blocks. It is tested on undamaged pictures of the test part,
damaged likewise: once when it learned all kinds, and once for each kind that it did not learn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from command_line import natural, positive
from faces.degradations import PHOTOGRAPHIC, degrade
from faces.reader import read_image
from methods.dsl_fiqa.data import read_rated_set
from methods.dsl_fiqa.make_set import UNDAMAGED
from model.statistics import rank_correlation
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from recipes.dsl_fiqa.strength import read_damage

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
SCALES = 4
NOTHING = -0.25  # strength of an undamaged picture
STEPS, BATCH = 1500, 256


class Examples(NamedTuple):
    """Statistics (N, F) of pictures, their kinds and strengths (N,)."""

    statistics: np.ndarray
    kinds: np.ndarray
    strengths: np.ndarray


def statistics(image: np.ndarray) -> np.ndarray:
    """Of RGB uint8 (H, W, 3): float64 (F,)."""
    found = [*np.percentile(image, PERCENTILES, axis=(0, 1)).ravel(), (image == 255).mean(), (image == 0).mean()]
    channels = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    for channel in np.moveaxis(channels, 2, 0):
        scaled = channel
        for _ in range(SCALES):
            for step in (1, 2):  # of the first and of the second difference
                found += sorted(np.log(np.abs(change).mean() + 0.05) for change in changes(scaled, step))
            scaled = cv2.resize(scaled, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    for lines in (channels[..., 0], channels[..., 0].T):
        across = np.abs(np.diff(lines, axis=1)).mean(axis=0)
        columns = [across[start::8].mean() for start in range(8)]
        found.append(np.log(max(columns) / (np.median(columns) + 0.01) + 0.01))
    return np.array(found)


def changes(values: np.ndarray, order: int) -> list[np.ndarray]:
    """First or second differences of (H, W) to the right, down, and along both diagonals."""
    found = [values] * 4
    for _ in range(order):
        right, down, falling, rising = found
        found = [right[:, 1:] - right[:, :-1], down[1:] - down[:-1]]
        found += [falling[1:, 1:] - falling[:-1, :-1], rising[1:, :-1] - rising[:-1, 1:]]
    return found


def examples(folder: Path, limit: int, seed: int) -> Examples:
    """At most `limit` undamaged pictures of a part of the set, each also damaged once in every kind."""
    rated = read_rated_set(folder, False)
    whole = np.flatnonzero(read_damage(rated).kinds == UNDAMAGED)
    rng = np.random.default_rng(seed)
    found, facts = [], []
    for row in rng.permutation(whole)[:limit]:
        image = read_image(rated.paths[row])
        for kind in (UNDAMAGED, *PHOTOGRAPHIC):
            strength = NOTHING if kind == UNDAMAGED else rng.random()
            found.append(statistics(image if kind == UNDAMAGED else degrade(image, kind, strength, rng)))
            facts.append((kind, strength))
    kinds, strengths = zip(*facts, strict=True)
    return Examples(np.array(found), np.array(kinds), np.array(strengths))


def fitted_strengths(known: Examples, asked: np.ndarray) -> np.ndarray:
    """The strengths (M,) that a small network, trained on examples, sees in statistics (M, F)."""
    torch.manual_seed(0)
    mean, std = known.statistics.mean(axis=0), known.statistics.std(axis=0) + 1e-6
    inputs, targets = torch.tensor((known.statistics - mean) / std).float(), torch.tensor(known.strengths).float()
    network = nn.Sequential(
        *(nn.Linear(inputs.shape[1], 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 1))
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,))
        seen = inputs[rows] + 0.05 * torch.randn(BATCH, inputs.shape[1])
        loss = (network(seen)[:, 0] - targets[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return network.eval()(torch.tensor((asked - mean) / std).float().clamp(-5, 5))[:, 0].numpy()


def results(known: Examples, tested: Examples) -> Iterator[list[Cell]]:
    """A row for each kind."""
    learned = fitted_strengths(known, tested.statistics)
    for kind in PHOTOGRAPHIC:
        others = Examples(*(part[known.kinds != kind] for part in known))
        asked = tested.kinds == kind
        predictions = learned[asked], fitted_strengths(others, tested.statistics[asked])
        yield [kind, *(rank_correlation(one, tested.strengths[asked]) for one in predictions)]


def report(args: argparse.Namespace) -> int:
    known, tested = (examples(args.folder / part, args.limit, args.seed) for part in ("train", "test"))
    columns = [Column("damage"), Column("SRCC, learned", "{:.3f}"), Column("SRCC, held out", "{:.3f}")]
    what = f"SRCC of the strength and of what simple statistics of {args.limit} pictures of each part say of it"
    Output(args.results, "make dsl-fiqa-reports").add("dsl_fiqa_statistics", what, columns, results(known, tested))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the set of methods.dsl_fiqa.make_set")
    parser.add_argument("--limit", type=positive, default=300, help="pictures of each part (default: 300)")
    parser.add_argument("--seed", type=natural, default=0)
    return report_exit_code(parser, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
