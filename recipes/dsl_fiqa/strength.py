"""How well a network of DSL-FIQA ranks the strength of damage on faces of people it never saw.

    python -m recipes.dsl_fiqa.strength runs/dsl_fiqa/set --weights dsl-fiqa --results results

reads the test part of a set of `methods.dsl_fiqa.make_set`. For each kind of damage it prints SRCC between the score
and the strength, and the share of damaged pictures that score below their undamaged photograph. Over several kinds
SRCC is that with the scores of the set, which make strengths of different kinds comparable. Intervals are of a
bootstrap over people.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from command_line import natural, positive
from methods.dsl_fiqa.data import RatedSet, read_pictures, read_rated_set, score_pictures
from methods.dsl_fiqa.make_set import UNDAMAGED
from methods.dsl_fiqa.networks import load_quality_network
from model.dsl_fiqa import DslFiqa
from model.fast_dsl_fiqa import accelerate_dsl_fiqa
from model.files import open_text
from model.statistics import rank_correlation
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Damage:
    """What was done to each of N pictures: kind and strength (N,), and the photograph that it was made of (N,)."""

    kinds: np.ndarray
    strengths: np.ndarray
    photographs: np.ndarray

    @property
    def people(self) -> np.ndarray:
        """(N,)."""
        return np.array([Path(path).parent.name for path in self.photographs])


def read_damage(rated: RatedSet) -> Damage:
    """damage.tsv of the set, in the order of its pictures. Raises ValueError when it is of another set."""
    file = rated.folder / "damage.tsv"
    with open_text(file) as lines:
        rows = {row["image"]: row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}
    if missing := [name for name in rated.names if name not in rows]:
        raise ValueError(f"{file} has no row of {missing[0]}: make the set again with methods.dsl_fiqa.make_set")
    found = [rows[name] for name in rated.names]
    strengths = np.array([float(row["strength"]) for row in found])
    return Damage(np.array([row["kind"] for row in found]), strengths, np.array([row["photograph"] for row in found]))


def predict(network: DslFiqa, rated: RatedSet, crops: int, workers: int = 0) -> np.ndarray:
    """The scores (N,) of all pictures of a set. Raises ValueError when one cannot be read."""
    pictures, bad = read_pictures(rated, network.shape, "no", workers)
    if bad:
        raise ValueError(f"{next(iter(bad))} cannot be read: make the set again")
    return score_pictures(network, pictures, CPU, torch.float32, crops)


def below_original(predicted: np.ndarray, damage: Damage, rows: np.ndarray) -> float:
    """Share of the pictures `rows` (M,) that score below the undamaged version of their photograph."""
    whole = damage.kinds == UNDAMAGED
    originals = dict(zip(damage.photographs[whole].tolist(), predicted[whole].tolist(), strict=True))
    return float(np.mean([predicted[row] < originals[damage.photographs[row]] for row in rows]))


def interval(a: np.ndarray, b: np.ndarray, people: np.ndarray, replicates: int) -> list[float]:
    """95 % interval of SRCC of a and b (M,), over people (M,) drawn with replacement."""
    drawn = [rank_correlation(a[rows], b[rows]) for rows in drawn_people(people, replicates)]
    return np.percentile(drawn, (2.5, 97.5)).tolist()


def drawn_people(people: np.ndarray, replicates: int) -> Iterator[np.ndarray]:
    """Rows of `people` (M,), the person of each picture: all pictures of people who are drawn with replacement."""
    groups = [np.flatnonzero(people == person) for person in np.unique(people)]
    rng = np.random.default_rng(0)
    for _ in range(replicates):
        yield np.concatenate([groups[index] for index in rng.integers(0, len(groups), len(groups))])


def rows_of(
    predicted: np.ndarray, opinions: np.ndarray, damage: Damage, held_out: Sequence[str], replicates: int
) -> Iterator[list[Cell]]:
    """A row for each kind, and for the trained, the held-out and all kinds together."""
    kinds = [str(kind) for kind in dict.fromkeys(damage.kinds.tolist()) if kind != UNDAMAGED]
    kinds.sort(key=lambda kind: kind in held_out)
    for kind in kinds:
        rows = np.flatnonzero(damage.kinds == kind)
        yield _row(kind, kind in held_out, rows, predicted, -damage.strengths, damage, replicates)
    groups = {"trained kinds": [k for k in kinds if k not in held_out], "held-out kinds": list(held_out), "all": kinds}
    for name, members in groups.items():
        rows = np.flatnonzero(np.isin(damage.kinds, [*members, UNDAMAGED]))
        yield _row(name, name == "held-out kinds", rows, predicted, opinions, damage, replicates)


def _row(
    name: str,
    held_out: bool,
    rows: np.ndarray,
    predicted: np.ndarray,
    target: np.ndarray,
    damage: Damage,
    replicates: int,
) -> list[Cell]:
    value = rank_correlation(predicted[rows], target[rows])
    limits = interval(predicted[rows], target[rows], damage.people[rows], replicates)
    damaged = rows[damage.kinds[rows] != UNDAMAGED]
    share = below_original(predicted, damage, damaged)
    return [name, "held out" if held_out else "", len(rows), [value, *limits], share]


def held_out_kinds(folder: Path) -> list[str]:
    """The kinds that the test part of a set has and its training part has not."""
    test, train = (set(read_damage(read_rated_set(folder / part, False)).kinds.tolist()) for part in ("test", "train"))
    return sorted(test - train)


def report(args: argparse.Namespace) -> int:
    network = accelerate_dsl_fiqa(load_quality_network(args.weights, args.degradation_encoder), torch.float32)
    rated = read_rated_set(args.folder / "test", network.shape.landmarks != "none")
    damage, held_out = read_damage(rated), held_out_kinds(args.folder)
    predicted = predict(network, rated, args.crops, args.workers)
    people = len(set(damage.people.tolist()))
    columns = [
        *(Column(name) for name in ("damage", "in training", "pictures")),
        Column("SRCC", "{:.3f} [{:.3f}, {:.3f}]"),
        Column("below the original", "{:.3f}"),
    ]
    what = f"SRCC of score and strength of damage on faces of {people} people who were not trained on"
    output = Output(args.results, "make dsl-fiqa-reports", [args.weights])
    output.add(args.name, what, columns, rows_of(predicted, rated.scores, damage, held_out, args.replicates))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the set of methods.dsl_fiqa.make_set")
    parser.add_argument("--weights", default="dsl-fiqa", help="network to measure")
    parser.add_argument("--degradation-encoder", help="DE.pt, for weights that hold none")
    parser.add_argument("--crops", type=positive, default=20, help="of each picture (default: 20)")
    parser.add_argument("--replicates", type=positive, default=200, help="of the bootstrap (default: 200)")
    parser.add_argument("--name", default="dsl_fiqa_strength", help="of the table in --results")
    parser.add_argument("--workers", type=natural, default=0)
    return report_exit_code(parser, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
