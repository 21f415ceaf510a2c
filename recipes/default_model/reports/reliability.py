"""Can the factors' probabilities be believed? Labelled faces of people and subjects that the default model never saw.

Prints for each labelled set: how often the bad and the good side of the factor were seen, the balanced accuracy, the
expected calibration error before and after the calibration that the weights hold, and the confusion matrix. Draws
reliability diagrams: among the faces whose good level has a probability near p, is a share near p good?

    python -m recipes.default_model.reports.reliability --figure docs/reliability.png --results results
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from command_line import positive
from faces.degradations import KINDS, SIZE, degrade
from faces.pose import euler_angles, pose_class
from model.calibration import Calibration, calibrated
from model.checkpoint import read_checkpoint
from model.prompts import AXES
from recipes.default_model.crops import factor_rows as rows_of
from recipes.default_model.crops import first_of_each, lfw_test_paths, read_crops
from recipes.default_model.landmarks import OPEN, SHUT, key_of, landmarks_of, mouth_opening
from recipes.default_model.reports.results import Cell, Column, Output, name_of, report_exit_code
from scoring import Scorer

BINS = 10
SIDE = "{:.3f} of {}"  # a recall and the faces of that side
TABLES = ("occlusion", "illumination", "expression")  # of factors/, named after their factor; split by subject


@dataclass(frozen=True)
class Labelled:
    """Faces with known levels of one factor."""

    factor: str
    where: str
    crops: list[np.ndarray]  # N of RGB uint8 (112, 112, 3)
    levels: np.ndarray  # (N,) index into AXES[factor], the last one is good


@dataclass(frozen=True)
class Reliability:
    """Predictions for a labelled set. The good side of a factor is its best level, the bad side all others."""

    labelled: Labelled
    probabilities: np.ndarray  # (N, levels)
    before: Reliability | None = None  # the same before calibration; None for weights that are not calibrated

    @property
    def good(self) -> np.ndarray:
        """(N,) whether the true level is the best."""
        return self.labelled.levels == self.probabilities.shape[1] - 1

    @property
    def confusion(self) -> np.ndarray:
        """(levels, levels) counts, of true levels (rows) and of most probable ones (columns)."""
        size = self.probabilities.shape[1]
        return np.bincount(
            self.labelled.levels * size + self.probabilities.argmax(axis=1), minlength=size * size
        ).reshape(size, size)

    def recalls(self) -> tuple[float, float]:
        """Shares of the bad and of the good side that are seen as such."""
        seen = self.probabilities.argmax(axis=1) == self.probabilities.shape[1] - 1
        return float(np.mean(~seen[~self.good])), float(np.mean(seen[self.good]))

    def balanced_accuracy(self) -> float:
        """Mean of both recalls."""
        return sum(self.recalls()) / 2

    def bins(self) -> list[tuple[float, float, int]]:
        """Mean probability of the best level, share of good faces and their count, in each bin that has any."""
        best = self.probabilities[:, -1]
        return [(float(best[rows].mean()), float(self.good[rows].mean()), len(rows)) for rows in self._rows_of_bins()]

    def _rows_of_bins(self) -> list[np.ndarray]:
        number = np.minimum((self.probabilities[:, -1] * BINS).astype(int), BINS - 1)
        return [rows for i in range(BINS) if len(rows := np.flatnonzero(number == i))]

    def calibration_error(self) -> float:
        """ECE (Guo et al., ICML 2017) of the best level's probability: mean distance from the diagonal over faces."""
        return sum(abs(p - share) * count for p, share, count in self.bins()) / len(self.good)

    def error_by_chance(self, draws: int = 2000) -> float:
        """The calibration error that perfect probabilities stay below in 95 % of the draws: the levels of as many faces
        are drawn from the probabilities themselves."""
        best = self.probabilities[:, -1]
        excess = (np.random.default_rng(0).random((draws, len(best))) < best) - best
        errors = sum(np.abs(excess[:, rows].sum(axis=1)) for rows in self._rows_of_bins()) / len(best)
        return float(np.quantile(errors, 0.95))


def judge(scorer: Scorer, labelled: Labelled, calibration: Calibration | None = None) -> Reliability:
    """Score a labelled set. `calibration` is applied to the probabilities of a scorer that does not calibrate."""
    scores = scorer.score(labelled.crops)
    raw = Reliability(labelled, np.array([list(score.factors[labelled.factor].values()) for score in scores]))
    if calibration is None:
        return raw
    scaled = calibrated(torch.from_numpy(raw.probabilities), calibration.factors[labelled.factor])
    return Reliability(labelled, scaled.numpy(), raw)


def judge_all(weights: str, sets: Sequence[Labelled]) -> list[Reliability]:
    """Score all sets with the weights, before and after their calibration."""
    scorer = Scorer(weights=weights, calibrated=False)
    calibration = Calibration.from_metadata(read_checkpoint(scorer.weights)[1])
    return [judge(scorer, one, calibration) for one in sets]


def labelled_sets(data: Path, faces: int, cache: Path) -> Iterator[Labelled]:
    """Synthetic damage of known strength on `faces` test identities, human and posed labels, pose from landmarks."""
    firsts = first_of_each(lfw_test_paths(data))
    clean = list(read_crops(firsts[:faces]))
    for factor in ("blur", "illumination", "occlusion"):
        yield damaged(factor, clean)
    people = [row for row in rows_of(data, "expression_lfw", None) if row["split"] == "test"]
    yield from_rows(data, "expression", "human labels, LFW test identities", [row for row in people if row["label"]])
    for factor in TABLES:
        yield from_rows(data, factor, f"{factor}.tsv, held-out subjects", rows_of(data, factor, held_out=True))
    yield real_masks(data, firsts)
    lit = [row for row in rows_of(data, "illumination_b", held_out=True) if row["label"]]
    yield from_rows(data, "illumination", "illumination_b.tsv, held-out subjects", lit)
    smiles = [data / row["path"] for row in people if row["condition"] == "happiness"]
    points = {key: found for key, found in landmarks_of([*firsts, *smiles], cache).items() if found is not None}
    opening = [(path, mouth_opening(points[key_of(path)])) for path in smiles if key_of(path) in points]
    sure = [(path, int(gap <= SHUT)) for path, gap in opening if not SHUT < gap < OPEN]
    crops = list(read_crops([path for path, _ in sure]))
    yield Labelled("expression", "smiles and laughter, LFW test identities", crops, np.array([s for _, s in sure]))
    posed = [(path, points[key_of(path)]) for path in firsts if key_of(path) in points]
    levels = np.array([pose_class(euler_angles(found, SIZE, SIZE)[1]) for _, found in posed])
    yield Labelled("pose", "landmarks, LFW test identities", list(read_crops([path for path, _ in posed])), levels)


def real_masks(data: Path, unmasked: Sequence[Path]) -> Labelled:
    """Masks of subjects that no training saw, and faces without a mask."""
    masks = [data / row["path"] for row in rows_of(data, "occlusion_real", held_out=True)]
    levels = np.array([0] * len(masks) + [1] * len(unmasked))
    crops = list(read_crops([*masks, *unmasked]))
    return Labelled("occlusion", "occlusion_real.tsv, held-out subjects; LFW test identities", crops, levels)


def damaged(factor: str, clean: Sequence[np.ndarray]) -> Labelled:
    """Every kind of damage to this factor at strength 0.5 or 1, which is its worst level, and the clean faces."""
    crops = [
        degrade(crop, kind, 0.5 + 0.5 * (i % 2), np.random.default_rng(i))
        for kind in KINDS if KINDS[kind][1] == factor
        for i, crop in enumerate(clean)
    ]  # fmt: skip
    levels = [0] * len(crops) + [len(AXES[factor]) - 1] * len(clean)
    return Labelled(factor, "synthetic damage, strength 0.5 and 1", [*crops, *clean], np.array(levels))


def from_rows(data: Path, factor: str, where: str, labelled: Sequence[dict[str, str]]) -> Labelled:
    """The faces of a table in factors/, whose labels are names of levels."""
    crops = read_crops([data / row["path"] for row in labelled])
    return Labelled(factor, where, list(crops), np.array([AXES[factor].index(row["label"]) for row in labelled]))


def factor_rows(judged: Sequence[Reliability], others: Sequence[Sequence[Reliability]] = ()) -> Iterator[list[Cell]]:
    """A row for each set: recalls with the counts of both sides, balanced accuracy, calibration error before and after
    calibration, and that of perfect probabilities (`error_by_chance`); then balanced accuracy and calibration error of
    the other models, whose sets are the same."""
    for one, *rest in zip(judged, *others, strict=True):
        bad, good = one.recalls()
        sides = [bad, int((~one.good).sum())], [good, int(one.good.sum())]
        before = one.before.calibration_error() if one.before else None
        numbers = [one.balanced_accuracy(), before, one.calibration_error(), one.error_by_chance()]
        more = [[other.balanced_accuracy(), other.calibration_error()] for other in rest]
        yield [one.labelled.factor, one.labelled.where, *sides, *numbers, *more]


def confusion_table(one: Reliability) -> tuple[list[Column], list[list[Cell]]]:
    """Counts of true levels (rows) and of the most probable ones (columns)."""
    names = AXES[one.labelled.factor]
    columns = [Column(f"{one.labelled.factor}, {one.labelled.where}: true"), *(Column(f"seen as {n}") for n in names)]
    return columns, [[name, *map(int, row)] for name, row in zip(names, one.confusion, strict=True)]


def draw(judged: Sequence[Reliability], path: Path) -> None:
    """Diagrams, one panel a set; the area of a dot grows with its faces. Raises ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the diagram needs matplotlib: pip install matplotlib") from None
    columns = min(4, len(judged))
    lines = -(-len(judged) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.5 * lines), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, one in zip(panels, judged, strict=False):
        said, share, count = map(np.array, zip(*one.bins(), strict=True))
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        panel.plot(said, share, linewidth=1)
        panel.scatter(said, share, s=8 + 150 * count / count.sum())
        title = f"{one.labelled.factor} (ECE {one.calibration_error():.3f})\n{one.labelled.where}"
        panel.set_title(title, fontsize="small")
        panel.set(xlabel=f"probability of “{AXES[one.labelled.factor][-1]}”", ylabel="share")
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    for spare in panels[len(judged) :]:
        spare.set_visible(False)
    figure.savefig(path)


def report(args: argparse.Namespace) -> int:
    sets = list(labelled_sets(args.data, args.faces, args.cache))
    judged, *others = [judge_all(weights, sets) for weights in (args.weights, *args.beside)]
    beside = ["--beside", *args.beside] if args.beside else []
    command = " ".join(["python -m recipes.default_model.reports.reliability", *beside])
    output = Output(args.results, command, [args.weights, *args.beside])
    columns = [Column("factor"), Column("on"), Column("bad side seen", SIDE), Column("good side seen", SIDE)]
    columns += [Column("balanced accuracy", "{:.3f}"), Column("calibration error before", "{:.3f}")]
    columns += [Column("calibration error", "{:.3f}"), Column("… by chance, 95 %", "{:.3f}")]
    columns += [Column(f"`{name_of(weights)}`", "{:.3f}, {:.3f}") for weights in args.beside]
    what = "Factors on labelled faces: recalls of both sides, balanced accuracy of the best level, calibration error"
    output.add("reliability", what, columns, factor_rows(judged, others))
    for one in judged:
        where = re.sub(r"\W+", "_", one.labelled.where.lower())
        output.add(f"confusion_{one.labelled.factor}_{where}", "Counts of faces by their levels", *confusion_table(one))
    if args.figure:
        draw(judged, args.figure)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with faces/, factors/ and splits/")
    parser.add_argument("--weights", default="clib-fiqa", help="model to measure")
    parser.add_argument("--beside", nargs="*", default=[], metavar="WEIGHTS", help="other models, a column each")
    parser.add_argument("--faces", type=positive, default=200, help="test identities that are damaged (200)")
    cache = Path("runs/landmarks_test.npz")
    parser.add_argument("--cache", type=Path, default=cache, help="dlib's landmarks of each face, found once")
    parser.add_argument("--figure", type=Path, help="PNG of the reliability diagrams")
    return report_exit_code(parser, report, arguments, "stopped; nothing was measured to its end")


if __name__ == "__main__":
    sys.exit(main())
