"""Where to draw the border of expression and of illumination: cross-fitting over the people that train.

People are the identities of the label table and the subjects of factors/. For each fold of them a model is trained by
the recipe of the default model on the rows of all other people. It gives the undamaged labelled faces of the fold the
probability of the worse level: an exaggerated expression, or extreme lighting. The table shows which share of each kind
of face lies above several borders. `BORDERS` of calibrate.py was chosen from it.

    python -m recipes.default_model.reports.borders --results results      # after `make tables`; some ten minutes
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from command_line import natural
from labels.anchors import photo_of
from labels.label_table import Label, read_labels
from recipes.default_model.calibrate import BORDERS
from recipes.default_model.crops import factor_rows
from recipes.default_model.known_labels import HELD, read_rows
from recipes.default_model.landmarks import OPEN, SHUT, landmarks_of, mouth_opening
from recipes.default_model.recipe import fit_without, probabilities, recipe, training_faces
from recipes.default_model.reports.cross_fit import fold_of
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code

FROM, TO = 20.0, 50.0  # degrees: light is normal to FROM and extreme from TO
EXPRESSIONS = {  # condition of factors/expression_lfw.tsv -> kind of face; smiles are told apart by the mouth
    "anger": "anger, surprise",
    "surprise": "anger, surprise",
    "neutral": "neutral faces",
}


def people_of(data: Path, labels: Sequence[Label], sources: Sequence[str]) -> list[str]:
    """The person of each row: its identity, or its subject in factors/, or the name in the path of the source."""
    subjects = {row["path"]: row["subject"] for name in HELD for row in factor_rows(data, name, None)}
    named = zip(labels, sources, strict=True)
    return [label.identity or subjects.get(source) or source.split("/")[2] for label, source in named]


def kinds_of(data: Path, cache: Path) -> dict[str, dict[str, str]]:
    """Factor -> path of a labelled face -> its kind."""
    people = factor_rows(data, "expression_lfw", held_out=False)
    smiles = [row["path"] for row in people if row["condition"] == "happiness"]
    points = landmarks_of([data / path for path in smiles], cache)
    openings = {path: mouth_opening(found) for path in smiles if (found := points[path]) is not None}
    expression = {row["path"]: EXPRESSIONS[row["condition"]] for row in people if row["condition"] in EXPRESSIONS}
    expression |= {path: "everyday smiles" for path, opening in openings.items() if opening <= SHUT}
    expression |= {path: "open laughter" for path, opening in openings.items() if opening >= OPEN}
    lit = [(row["path"], float(row["angle"])) for row in factor_rows(data, "illumination_b", held_out=False)]
    light = {path: f"light to {FROM:.0f}°" for path, angle in lit if angle <= FROM}
    light |= {path: f"light from {TO:.0f}°" for path, angle in lit if angle >= TO}
    for row in factor_rows(data, "illumination", held_out=False):
        if row["label"] == "extreme lighting":
            light[row["path"]] = "Yale's side light"
    return {"expression": expression, "illumination": light}


def held_out_probabilities(args: argparse.Namespace) -> tuple[list[str], dict[str, np.ndarray]]:
    """The sources of the undamaged rows of the table, and for each factor the probability of its worse level there, by
    the model of the fold that did not learn the person."""
    config = recipe(args.tables / "train.tsv", args.tables / "tiny.safetensors")
    labels = read_labels(config.data_list)
    known = {photo_of(row["path"]): row["source"] for row in read_rows(args.tables / "originals.tsv")}
    sources = [known[photo_of(label.path)] for label in labels]
    people = people_of(args.data, labels, sources)
    folds = fold_of(people, args.folds, args.seed)
    fold = torch.tensor([folds[person] for person in people])
    original = torch.tensor(["~" not in label.path for label in labels])
    faces = training_faces(config)
    assert faces.images.cached is not None
    found = {factor: np.empty(len(labels)) for factor in ("expression", "illumination")}
    for index in range(args.folds):
        model = fit_without(config, faces, fold == index)
        rows = ((fold == index) & original).nonzero()[:, 0]
        levels = probabilities(model, faces.images.cached[rows, 0])
        for factor, column in found.items():
            column[rows] = levels[factor][:, 0].numpy()
        print(f"fold {index}: {len(rows)} faces held out", file=sys.stderr, flush=True)
    chosen = original.nonzero()[:, 0].tolist()
    return [sources[row] for row in chosen], {factor: column[chosen] for factor, column in found.items()}


def border_rows(kinds: dict[str, str], sources: Sequence[str], values: np.ndarray) -> Iterator[list[Cell]]:
    """A row for each kind of face: their number, and the shares above the borders. A face that is in the table twice
    counts once."""
    groups: dict[str, list[float]] = defaultdict(list)
    for source, value in dict(zip(sources, values.tolist(), strict=True)).items():
        if source in kinds:
            groups[kinds[source]].append(value)
    for kind in dict.fromkeys(kinds.values()):
        yield [kind, len(groups[kind]), *(float(np.mean(np.array(groups[kind]) > border)) for border in borders())]


def borders() -> list[float]:
    return sorted({0.5, 0.45, 0.4, 0.35, 0.3, *BORDERS.values()}, reverse=True)


def run(args: argparse.Namespace) -> int:
    output = Output(args.results, "python -m recipes.default_model.reports.borders", [])
    kinds = kinds_of(args.data, args.cache)
    sources, values = held_out_probabilities(args)
    columns = [Column("faces of people that trained nothing"), Column("number")]
    columns += [Column(f"above {border:g}", "{:.3f}") for border in borders()]
    rows = [row for factor in values for row in border_rows(kinds[factor], sources, values[factor])]
    output.add("borders", "Share of faces whose worse level has a probability above a border", columns, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and factors/")
    parser.add_argument("--tables", type=Path, default=Path("runs/default"), help="of `make tables` (runs/default)")
    parser.add_argument("--cache", type=Path, default=Path("runs/landmarks.npz"), help="dlib's landmarks, found once")
    parser.add_argument("--folds", type=natural, default=3, help="(3)")
    parser.add_argument("--seed", type=natural, default=5, help="of the split (5)")
    return report_exit_code(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
