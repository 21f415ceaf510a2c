"""Where perceptual quality (DSL-FIQA) and utility to recognition (CLIB-FIQA) disagree.

    python -m recipes.dsl_fiqa.disagreement --data ../shared/data --results results --figures docs

Two tables and two figures. On aligned crops of LFW's test identities, which neither network learned from: the share of
each bad factor, as CLIB-FIQA names it, among the crops that one method ranks much higher than the other, and a scatter
plot of both ranks. On the sample faces and damaged versions of them: the percentiles that both methods give, for those
on which they disagree most, with a figure of these pictures. Pictures of the data folder are never shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from command_line import positive
from faces.degradations import KINDS, degrade
from faces.listing import list_images
from faces.reader import read_image
from model.statistics import rank_correlation
from recipes.default_model.crops import first_of_each, lfw_test_paths, read_crops
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from scoring import Scorer

SAMPLES = Path(__file__).parents[2] / "samples"
TENTH = 0.1  # share of the crops on each side of the comparison
BAD = {  # factor -> its levels that make a face hard to recognise
    "pose": ("profile", "slight angle"),
    "occlusion": ("obstructed",),
    "expression": ("exaggerated expression",),
    "illumination": ("extreme lighting",),
    "blur": ("hazy", "blurry"),
}
STRENGTH = 0.6  # of the damage to the sample faces
SHOWN = 4  # pictures of each side


@dataclass(frozen=True)
class Both:
    """N pictures under both methods: percentiles (N,) within LFW's crops, and the factors that CLIB-FIQA names."""

    perceptual: np.ndarray
    utility: np.ndarray
    labels: list[dict[str, str | None]]

    @property
    def difference(self) -> np.ndarray:
        """Positive where people would like a picture better than a recognition system."""
        return self.perceptual - self.utility


class Judges:
    """Both scorers, and the scores of the crops within which percentiles are taken."""

    def __init__(self, perceptual: str, utility: str, crops: np.ndarray) -> None:
        self.scorers = Scorer(weights=perceptual), Scorer(weights=utility)
        self.reference = [np.sort(self._scores(scorer, list(crops))[0]) for scorer in self.scorers]

    def judge(self, crops: Sequence[np.ndarray]) -> Both:
        """Aligned crops, RGB uint8 (112, 112, 3)."""
        found = [self._scores(scorer, crops) for scorer in self.scorers]
        perceptual, utility = (
            100 * np.searchsorted(reference, scores) / len(reference)
            for reference, (scores, _) in zip(self.reference, found, strict=True)
        )
        return Both(perceptual, utility, found[1][1])

    @staticmethod
    def _scores(scorer: Scorer, crops: Sequence[np.ndarray]) -> tuple[np.ndarray, list[dict[str, str | None]]]:
        found = scorer.score(list(crops))
        named = [{factor: score.label(factor) for factor in BAD} for score in found]
        return np.array([score.quality for score in found], np.float64), named


def factor_rows(both: Both) -> Iterator[list[Cell]]:
    """A row for the tenth that one method ranks highest above the other, for the opposite tenth, and for all."""
    order = np.argsort(both.difference)
    count = max(1, round(TENTH * len(order)))
    groups = {
        "higher perceptual quality than utility": order[-count:],
        "higher utility than perceptual quality": order[:count],
        "all": order,
    }
    for name, rows in groups.items():
        shares = [float(np.mean([both.labels[row][factor] in bad for row in rows])) for factor, bad in BAD.items()]
        means = [float(both.perceptual[rows].mean()), float(both.utility[rows].mean())]
        yield [name, len(rows), *means, *shares]


def sample_versions() -> dict[str, np.ndarray]:
    """The sample faces, and the sharp ones in every kind of damage."""
    samples = {path.stem: read_image(path) for path in list_images(SAMPLES)}
    versions = {name.replace("_", ", "): image for name, image in samples.items()}
    for number, kind in enumerate(KINDS):
        damaged = degrade(samples["astronaut"], kind, STRENGTH, np.random.default_rng(number))
        versions[f"astronaut, {kind.replace('_', ' ')}"] = damaged
    return versions


def most_different(both: Both) -> list[int]:
    """The pictures that one method ranks highest above the other, and behind them the opposite."""
    order = np.argsort(both.difference)
    return [*order[::-1][:SHOWN].tolist(), *order[:SHOWN].tolist()]


def draw_scatter(path: Path, both: Both) -> None:
    """Percentiles of both methods, a dot for each crop. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    turned = np.array([labels["pose"] in BAD["pose"] for labels in both.labels])
    for chosen, name in ((~turned, "frontal"), (turned, "turned")):
        axes.scatter(both.utility[chosen], both.perceptual[chosen], s=9, alpha=0.7, label=name)
    axes.set(xlabel="percentile of utility (CLIB-FIQA)", ylabel="percentile of perceptual quality (DSL-FIQA)")
    axes.legend(loc="lower right")
    figure.savefig(path)


def draw_samples(path: Path, pictures: dict[str, np.ndarray], both: Both, rows: Sequence[int]) -> None:
    """The pictures of `rows` with the percentiles of both methods, a line for each side."""
    from matplotlib.figure import Figure

    names = list(pictures)
    lines = len(rows) // SHOWN
    figure = Figure(figsize=(2 * SHOWN, 2.6 * lines), dpi=110, layout="constrained")
    for panel, row in zip(figure.subplots(lines, SHOWN, squeeze=False).ravel(), rows, strict=True):
        panel.imshow(pictures[names[row]])
        panel.set_axis_off()
        text = f"perceptual {both.perceptual[row]:.0f}, utility {both.utility[row]:.0f}"
        panel.set_title(f"{names[row]}\n{text}", fontsize="small")
    figure.savefig(path)


def report(args: argparse.Namespace) -> int:
    paths = first_of_each(lfw_test_paths(args.data))[: args.limit]
    crops = read_crops(paths)
    judges = Judges(args.perceptual, args.utility, crops)
    lfw = judges.judge(list(crops))
    rho = rank_correlation(lfw.perceptual, lfw.utility)
    print(f"rank correlation of both methods on {len(paths)} crops: {rho:.3f}\n")
    output = Output(args.results, "make dsl-fiqa-reports", [args.perceptual, args.utility])
    columns = [Column("tenth"), Column("crops"), Column("perceptual", "{:.0f}"), Column("utility", "{:.0f}")]
    columns += [Column(" or ".join(bad), "{:.2f}") for bad in BAD.values()]
    what = f"LFW test crops on which both methods disagree most; their rank correlation is {rho:.3f}"
    output.add("dsl_fiqa_disagreement", what, columns, factor_rows(lfw))
    pictures = sample_versions()
    samples = judges.judge(list(pictures.values()))
    rows = most_different(samples)
    names = list(pictures)
    table: list[list[Cell]] = [[names[row], samples.perceptual[row], samples.utility[row]] for row in rows]
    columns = [Column("picture"), Column("perceptual", "{:.0f}"), Column("utility", "{:.0f}")]
    output.add("dsl_fiqa_samples", "Percentiles of sample faces among the LFW test crops", columns, table)
    if args.figures:
        draw_scatter(args.figures / "perceptual.png", lfw)
        draw_samples(args.figures / "perceptual_samples.png", pictures, samples, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the data folder of docs/data.md")
    parser.add_argument("--perceptual", default="dsl-fiqa", help="weights of DSL-FIQA")
    parser.add_argument("--utility", default="clib-fiqa", help="weights of CLIB-FIQA")
    parser.add_argument("--limit", type=positive, default=300, help="people of LFW's test part (default: 300)")
    parser.add_argument("--figures", type=Path, help="folder of perceptual.png and perceptual_samples.png")
    return report_exit_code(parser, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
