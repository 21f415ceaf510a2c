"""Does the score stay the same under changes that should not matter, and under attempts to raise it?

Each aligned face is changed (shifted, turned, scaled, compressed, resampled, mirrored, made grey, given a sticker) and
scored again. Prints the mean change of the score, the mean size of the change, the rank correlation with the scores of
the unchanged faces, and the share of faces whose score rose. A sticker that says "perfect quality" must
not raise it: CLIP reads (Goh et al., "Multimodal Neurons", 2021).

    python -m recipes.default_model.reports.robustness ../shared/data/faces/lfw/A* --weights clib-fiqa
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from scipy.stats import spearmanr

from faces.align import aligned
from faces.degradations import compress
from faces.listing import expand_inputs
from faces.reader import ImageError, read_image
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from scoring import Scorer

SIZE = 112
Change = Callable[[np.ndarray], np.ndarray]  # RGB uint8 (112, 112, 3) -> the same


@dataclass(frozen=True)
class Effect:
    """What a change does to the scores of N faces."""

    name: str
    mean: float
    mean_size: float
    rank_correlation: float  # NaN for fewer than two faces
    raised: float  # share of faces


def move(image: np.ndarray, right: float = 0, down: float = 0, degrees: float = 0, scale: float = 1) -> np.ndarray:
    """Turn and scale about the middle, then shift, in pixels; borders are repeated."""
    matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2, (SIZE - 1) / 2), degrees, scale)
    matrix[:, 2] += np.array([right, down])
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def resample(image: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Resize to each side in turn and back: by area when shrinking, else bilinear."""
    for side in (*sides, SIZE):
        method = cv2.INTER_AREA if side < len(image) else cv2.INTER_LINEAR
        image = cv2.resize(image, (side, side), interpolation=method)
    return image


def mirror(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def sticker(image: np.ndarray, text: str, middle: int) -> np.ndarray:
    """A white label with black text across the face, its middle at this row; an empty text leaves it blank."""
    image = image.copy()
    cv2.rectangle(image, (6, middle - 8), (SIZE - 7, middle + 8), (255, 255, 255), -1)
    cv2.putText(image, text, (9, middle + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def changes() -> Iterator[tuple[str, list[Change]]]:
    """Name and variants of each change; a row of the table is the mean over its variants."""
    for pixels in (1, 2, 3, 4, 6, 8):
        steps = ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))
        yield f"shift by {pixels} px", [partial(move, right=x, down=y) for x, y in steps]
    for degrees in (2, 5, 10):
        yield f"rotation by ±{degrees}°", [partial(move, degrees=d) for d in (degrees, -degrees)]
    for percent in (5, 10):
        yield f"scale ±{percent} %", [partial(move, scale=1 + s * percent / 100) for s in (1, -1)]
    for quality in (95, 75, 50, 30, 20, 10):
        yield f"JPEG {quality}", [partial(compress, quality=quality)]
    for sides in ((224,), (84,), (56,), (28,), (224, 56)):
        yield f"resize {'→'.join(map(str, (SIZE, *sides, SIZE)))}", [partial(resample, sides=sides)]
    yield "horizontal flip", [mirror]
    yield "greyscale", [grey]
    for text in ("perfect quality", "bad quality", ""):
        name = f"sticker “{text}”" if text else "sticker, blank"
        yield name, [partial(sticker, text=text, middle=row) for row in (16, 66, 100)]  # forehead, nose, chin


def measure(scorer: Scorer, crops: Sequence[np.ndarray]) -> Iterator[Effect]:
    """The effect of each of `changes` on aligned faces, RGB uint8 (112, 112, 3)."""
    clean = _qualities(scorer, crops)
    for name, variants in changes():
        changed = np.stack([_qualities(scorer, [variant(crop) for crop in crops]) for variant in variants])
        moved = changed - clean  # (variants, N)
        rho = [spearmanr(clean, row).statistic for row in changed] if len(crops) > 1 else [np.nan]
        raised = float((moved > 0).mean())
        yield Effect(name, float(moved.mean()), float(np.abs(moved).mean()), float(np.mean(rho)), raised)


def _qualities(scorer: Scorer, crops: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([score.quality for score in scorer.score(list(crops))], np.float64)


def read_crop(path: str) -> np.ndarray:
    """A face as a crop of 112x112 pixels. Raises ValueError when there is none."""
    try:
        return aligned(read_image(path), "auto")
    except ImageError as error:
        raise ValueError(f"{path}: {error.status}") from None


def report(args: argparse.Namespace) -> int:
    crops = [read_crop(path) for path in expand_inputs(args.images, sys.stdin)]
    scorer = Scorer(weights=args.weights)
    print(f"{len(crops)} faces; standard deviation of their scores {_qualities(scorer, crops).std():.3f}\n")
    heads = {"mean change": "{:+.3f}", "mean size": "{:.3f}", "rank correlation": "{:.3f}", "raised": "{:.3f}"}
    columns = [Column("change"), *(Column(name, form) for name, form in heads.items())]
    what = f"Change of the score under changes of the image, {len(crops)} faces"
    command = f"python -m recipes.default_model.reports.robustness {shlex.join(args.images)}"
    output = Output(args.results, command, [args.weights])
    output.add("robustness", what, columns, (row_of(effect) for effect in measure(scorer, crops)))
    return 0


def row_of(effect: Effect) -> list[Cell]:
    rho = None if math.isnan(effect.rank_correlation) else effect.rank_correlation
    return [effect.name, effect.mean, effect.mean_size, rho, effect.raised]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="PATH", help="faces: files, folders, patterns, @list")
    parser.add_argument("--weights", default="clib-fiqa", help="model to measure")
    return report_exit_code(parser, report, arguments, "stopped; the finished rows are above")


if __name__ == "__main__":
    sys.exit(main())
