"""Does the map of what lowers a score find what was painted over a face?

    python benchmarks/region_map.py ../shared/data --results results

Paints a random patch that covers 10 to 26 % of the face (`faces/degradations.py`) over one crop each of LFW's test
identities, makes the map of the default model, and counts how often the peak of the map lies in the patch. Prints how
large a share of the face the patches cover, which is what a random peak would find.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from command_line import positive  # noqa: E402
from faces.degradations import SIZE, degrade, in_face  # noqa: E402
from faces.reader import read_image  # noqa: E402
from recipes.default_model.crops import first_of_each, lfw_test_paths  # noqa: E402
from recipes.default_model.reports.results import Column, Output, name_of, report_exit_code  # noqa: E402
from scoring import Scorer  # noqa: E402

LARGEST = 0.3  # strength of the kind "patch": 26 % of the face


def find_patch(weights: str, axes: Sequence[str], path: Path, seed: int) -> tuple[float, list[bool]]:
    """Paint a patch over a face. The share of the face's pixels in it, and for each axis whether the peak is in it."""
    rng = np.random.default_rng(seed)
    clean = read_image(path)
    painted = degrade(clean, "patch", LARGEST * rng.uniform(), rng)
    patch = patch_of(clean, painted)
    maps = [scorer_of(weights).region_map(painted, axis) for axis in axes]
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return float(patch[in_face(x, y)].mean()), [bool(patch[one.peak[1], one.peak[0]]) for one in maps]


def patch_of(clean: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """(112, 112) bool: the pixels that the patch changed, without holes where its colour is that of the face."""
    changed = (np.abs(clean.astype(np.int16) - painted).max(axis=2) > 12).astype(np.uint8)
    return cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0


@cache
def scorer_of(weights: str) -> Scorer:
    """Loaded once in each process."""
    torch.set_num_threads(1)
    return Scorer(weights=weights, device="cpu", batch_size=32)


def run(args: argparse.Namespace) -> int:
    paths = first_of_each(lfw_test_paths(args.data))
    chosen = [paths[i * len(paths) // args.faces] for i in range(args.faces)]
    work = partial(find_patch, args.weights, args.axes)
    with ProcessPoolExecutor(args.workers) as pool:
        found = list(tqdm(pool.map(work, chosen, range(len(chosen))), total=len(chosen), unit=" faces", mininterval=10))
    covered, hits = np.array([share for share, _ in found]), np.array([hit for _, hit in found])
    columns = [Column("weights"), Column("map of"), Column("faces"), Column("found", "{:.3f}")]
    columns += [Column("share of the face that the patch covers", "{:.3f}")]
    rows = [
        [name_of(args.weights), axis, len(chosen), float(hits[:, i].mean()), float(covered.mean())]
        for i, axis in enumerate(args.axes)
    ]
    output = Output(args.results, "python benchmarks/region_map.py ../shared/data", [args.weights])
    output.add("region_map", "How often the peak of the map lies in a painted patch", columns, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the data folder (docs/data.md)")
    parser.add_argument("--weights", default="clib-fiqa", help="name or file")
    parser.add_argument("--axes", nargs="+", default=["quality"], metavar="AXIS", help="maps to make (quality)")
    parser.add_argument("--faces", type=positive, default=500, help="(500)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (2)")
    return report_exit_code(parser, run, arguments, "stopped; nothing was measured to its end")


if __name__ == "__main__":
    sys.exit(main())
