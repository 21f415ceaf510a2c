"""Is the score fair to kinds of faces? LFW's test identities by pose and expression, as far as labels allow.

For each group: its median score, how often its faces are among the worst tenth of all, and how often face recognition
fails on its mated pairs (one face or both in the group), before and after that tenth is discarded. A group that is
discarded more often although its pairs do not fail more often is treated unfairly.

    python -m recipes.default_model.reports.subgroups runs/evaluation/lfw_test/dlib.npz --scores runs/scores.csv

Sex, age and skin are not labelled in the data folder, so nothing is said about them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluation.bench import image_quality, similarities
from evaluation.edc import Floats, fixed_threshold
from evaluation.embeddings import read_embeddings
from evaluation.pairs import Pairs, read_pairs
from evaluation.scores import read_scores
from faces.pose import pose_class
from model.prompts import AXES
from recipes.default_model.crops import data_file, factor_rows
from recipes.default_model.landmarks import yaw_of
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code

FMR = 1e-3
DISCARDED = 0.1

Mask: TypeAlias = NDArray[np.bool_]


def groups_of(data: Path, names: Sequence[str], cache: Path) -> dict[str, Mask]:
    """Group -> which images (N,) of the data folder belong to it: pose from landmarks, expression from people. Images
    without a label belong to none."""
    yaw = yaw_of([data / name for name in names], cache)
    pose = [AXES["pose"][pose_class(angle)] if (angle := yaw[name]) is not None else "" for name in names]
    table = factor_rows(data, "expression_lfw", None)
    by_people = {row["path"]: row["label"] for row in table}
    labels = {"pose": pose, "expression": [by_people.get(name, "") for name in names]}
    return {
        level: np.array([found == level for found in values]) for axis, values in labels.items() for level in AXES[axis]
    }


def group_rows(pairs: Pairs, quality: Floats, similarity: Floats, groups: Mapping[str, Mask]) -> Iterator[list[Cell]]:
    """A row for all images and for each group. quality (N,), groups (N,) of images; similarity (P,) of pairs."""
    errors = similarity < fixed_threshold(np.sort(similarity[~pairs.mated])[::-1], FMR)
    bound = np.quantile(quality, DISCARDED)
    kept = np.minimum(quality[pairs.first], quality[pairs.second]) >= bound
    for name, group in {"all": np.ones(len(quality), bool), **groups}.items():
        touched = pairs.mated & (group[pairs.first] | group[pairs.second])
        own = quality[group]
        scores = [float(np.median(own)), float((own < bound).mean())] if len(own) else [None, None]
        yield [name, len(own), *scores, int(touched.sum()), _rate(errors[touched]), _rate(errors[touched & kept])]


def _rate(errors: Mask) -> Cell:
    """FNMR and the errors that it counts."""
    return [float(errors.mean()), int(errors.sum())] if len(errors) else None


def report(args: argparse.Namespace) -> int:
    pairs = read_pairs(data_file(args.data, "pairs/lfw_test.tsv"))
    similarity = similarities(pairs, read_embeddings(args.embeddings), str(args.embeddings))
    quality = image_quality(pairs, read_scores(args.scores), str(args.scores))
    groups = groups_of(args.data, pairs.names, args.cache)
    rate = "{:.4f} ({})"
    columns = [Column("group"), Column("images"), Column("median score", "{:.2f}")]
    columns += [Column("in the worst tenth", "{:.3f}"), Column("mated pairs")]
    columns += [Column("FNMR", rate), Column("without the worst tenth", rate)]
    what = f"LFW's test identities by pose and expression: scores, and errors of {args.embeddings.stem} at FMR {FMR:g}"
    command = f"python -m recipes.default_model.reports.subgroups {args.embeddings} --scores {args.scores}"
    output = Output(args.results, command, [args.weights] if args.weights else [])
    output.add("subgroups", what, columns, group_rows(pairs, quality, similarity, groups))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS.npz", help="the judge: evaluate.py embed")
    parser.add_argument("--scores", type=Path, required=True, help="scores of LFW's test images")
    parser.add_argument("--weights", default="", help="the model that made them, to be named in --results")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the data folder")
    cache = Path("runs/landmarks_test.npz")
    parser.add_argument("--cache", type=Path, default=cache, help="dlib's landmarks, found once")
    return report_exit_code(parser, report, arguments, "stopped; nothing was printed")


if __name__ == "__main__":
    sys.exit(main())
