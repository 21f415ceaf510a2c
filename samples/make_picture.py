"""The picture of the README: the sample faces, best first, with the default model's scores and factors.

    python -m samples.make_picture docs/samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from model.prompts import AXES, FACTORS
from scoring import Score, Scorer

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="PICTURE.png")
    output = parser.parse_args().output
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = sorted(FOLDER.glob("*.png"))
    scores = Scorer("clib-fiqa", precision="fp32").score(files)
    ranked = sorted(zip(scores, files, strict=True), key=lambda pair: -(pair[0].quality or 0))
    figure, axes = pyplot.subplots(1, len(scores), figsize=(2.1 * len(scores), 3.1), layout="constrained")
    for plot, (score, file) in zip(axes, ranked, strict=True):
        plot.imshow(Image.open(file))
        plot.axis("off")
        plot.set_title(f"{score.quality:.2f}", fontsize=15, fontweight="bold")
        plot.text(0.5, -0.05, "\n".join(faults(score)), transform=plot.transAxes, ha="center", va="top", fontsize=9)
    figure.savefig(output, dpi=110)


def faults(score: Score) -> list[str]:
    """The factors that are not at their best level, with their probabilities."""
    labels = {factor: str(score.label(factor)) for factor in FACTORS}
    found = {factor: level for factor, level in labels.items() if level != AXES[factor][-1]}
    return [f"{level} {score.factors[factor][level]:.0%}" for factor, level in found.items()] or ["no fault"]


if __name__ == "__main__":
    main()
