"""Speed of the shipped model from files to scores, against the plain network one image at a time, in one run.

    python benchmarks/default_model.py ../shared/data/faces/lfw       # a minute or two on two cores

The aim is 300 images a second on two quiet cores. Start-up is not counted. All variants run in turn,
several times, and the best round of each is reported: it is the closest to a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import keep_freed_memory, positive  # noqa: E402
from faces.listing import list_images  # noqa: E402
from faces.reader import read_image  # noqa: E402
from model import load  # noqa: E402
from model.clib_fiqa import ClibFiqa, expected_quality, marginals  # noqa: E402
from scoring import Scorer  # noqa: E402

SIZES = {"tiny": "clib-fiqa"}
FEW = 200  # images that go one at a time


@torch.inference_mode()
def one_at_a_time(network: ClibFiqa, paths: list[str]) -> None:
    """Decode, normalise and score each image alone, with the network as it was loaded."""
    for path in paths:
        pixels = network.preprocessing.resize(read_image(path))
        images = network.preprocessing.normalise(torch.from_numpy(pixels)[None])
        float(expected_quality(marginals(network(images))["quality"]))


def stream(scorer: Scorer, workers: int, paths: list[str]) -> None:
    failed = [score.path for score in scorer.stream(paths, workers) if score.quality is None]
    assert not failed, f"{failed[0]} could not be scored"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder with aligned crops")
    parser.add_argument("--count", type=positive, default=1600, help="images to score (1600)")
    parser.add_argument("--rounds", type=positive, default=5, help="(5)")
    parser.add_argument("--batch-size", type=positive, default=16, help="as of inference.py (16)")
    args = parser.parse_args()
    keep_freed_memory()
    paths = [str(path) for path in islice(list_images(args.faces), args.count)]
    work: dict[tuple[str, str], tuple[Callable[[list[str]], None], list[str]]] = {}
    for size, weights in SIZES.items():
        work[size, "one at a time"] = partial(one_at_a_time, load(weights)), paths[:FEW]
        for align in ("auto", "no"):  # auto, the default, looks at each crop before it is scored
            scorer = Scorer(weights=weights, align=align, batch_size=args.batch_size)
            for workers in (0, 1, 2):
                work[size, f"`--align {align}`, {workers} readers"] = partial(stream, scorer, workers), paths
    best = dict.fromkeys(work, 0.0)
    for _ in range(args.rounds):
        for name, (function, images) in work.items():
            start = time.perf_counter()
            function(images)
            best[name] = max(best[name], len(images) / (time.perf_counter() - start))
    print(f"{len(paths)} images, {torch.get_num_threads()} threads\n")
    print("| size | how | images/s | ratio |\n|---|---|---|---|")
    for (size, how), rate in best.items():
        print(f"| {size} | {how} | {rate:.0f} | {rate / best[size, 'one at a time']:.1f} |")


if __name__ == "__main__":
    main()
