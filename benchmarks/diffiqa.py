"""What DifFIQA's score costs, and how much of it cheaper procedures keep.

    python benchmarks/diffiqa.py FACES --weights DIFFUSION --fr MODEL --output runs/cost --count 200

Each procedure scores the same images. Its table is written to the folder OUTPUT as soon as it is done, and a table that
is there is not made again. The printed table holds, for each procedure: passes through the UNet for an
image, seconds for an image, and Spearman's correlation with the full procedure. On a CPU the seconds are those of the
processor, so that other programs hardly change them. `another seed` is the full procedure with other noise: no cheaper
one can be expected to correlate better. Aim: 0.98 at a tenth of the cost.

Error-versus-discard curves of the tables: python evaluate.py edc --scores full=OUTPUT/full.csv fast=OUTPUT/fast.csv ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import keep_freed_memory, positive  # noqa: E402
from evaluation.scores import read_scores, write_scores  # noqa: E402
from faces.listing import list_images  # noqa: E402
from faces.workers import load_batches  # noqa: E402
from labels.measure import write_json  # noqa: E402
from labels.recognition import load_recognizer  # noqa: E402
from methods.diffiqa.quality import PRESETS, Procedure, make_scorer  # noqa: E402
from model import load  # noqa: E402
from model.device import pick_device  # noqa: E402
from model.fast import PRECISIONS  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402

FULL = PRESETS["full"]
PROCEDURES: dict[str, tuple[Procedure, str]] = {  # name -> procedure, precision of the UNet
    "full": (FULL, "fp32"),
    "another seed": (replace(FULL, seed=1), "fp32"),
    "five steps": (replace(FULL, ddim_steps=5), "fp32"),
    "half precision": (FULL, "bf16"),
    "shared noise": (replace(FULL, noise="shared"), "fp32"),
    "one view": (replace(FULL, views=1), "fp32"),
    **{
        f"{repeats} x {steps} x {views}, {noise}": (Procedure(repeats, 5, steps, views, noise), "fp32")
        for repeats, steps, views in (
            *((2, 3, 2), (3, 2, 2), (6, 1, 2), (4, 3, 1), (6, 2, 1), (12, 1, 1)),
            *((2, 2, 2), (1, 3, 2), (1, 2, 2), (2, 3, 1), (1, 1, 1)),
        )
        for noise in ("own", "shared")
    },
    "2 x 3 x 2, own, half precision": (Procedure(2, 5, 3, 2), "bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder with aligned crops")
    parser.add_argument("--weights", required=True, help="the diffusion model")
    parser.add_argument("--fr", required=True, help="the FR model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables and costs.json")
    parser.add_argument("--count", type=positive, default=200, help="images, drawn at random (200)")
    parser.add_argument("--only", nargs="+", default=list(PROCEDURES), choices=PROCEDURES, help="procedures (all)")
    parser.add_argument("--device", default="auto")
    add_results_option(parser)
    parser.add_argument("--batch-size", type=positive, default=8, help="images at a time on a GPU (8)")
    args = parser.parse_args()
    keep_freed_memory()
    args.output.mkdir(parents=True, exist_ok=True)
    paths = [str(path) for path in list_images(args.faces)]
    chosen = np.random.default_rng(0).permutation(len(paths))[: args.count]
    paths = [paths[i] for i in sorted(chosen.tolist())]

    device = pick_device(args.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    diffusion, recognizer = load(args.weights), load_recognizer(args.fr, device=device)
    costs_file = args.output / "costs.json"
    seconds = json.loads(costs_file.read_text())["seconds"] if costs_file.is_file() else {}
    for name in args.only:
        table = args.output / f"{name}.csv"
        if table.is_file() and name in seconds:
            continue
        procedure, precision = PROCEDURES[name]
        score = make_scorer(diffusion, recognizer, procedure, device, PRECISIONS[precision])
        rows, began = [], clock()
        for batch in load_batches(paths, diffusion.preprocessing.resize, args.batch_size, 0):
            values = score(np.stack([image.value for image in batch]))
            rows += [(image.path, "ok", value) for image, value in zip(batch, values.tolist(), strict=True)]
        seconds[name] = (clock() - began) / len(paths)
        write_scores(table, rows)
        write_json(costs_file, {"images": len(paths), "device": str(device), "seconds": seconds})
        print(f"{name}: {seconds[name]:.2f} s an image", file=sys.stderr, flush=True)

    done = [name for name in PROCEDURES if name in seconds and (args.output / f"{name}.csv").is_file()]
    ranks = {name: ranks_of(list(read_scores(args.output / f"{name}.csv").values())) for name in done}
    if "full" not in ranks:
        return
    rows: list[list[Cell]] = [
        [
            name,
            PROCEDURES[name][0].passes(),
            seconds[name],
            seconds[name] / seconds["full"],
            float(np.corrcoef(ranks[name], ranks["full"])[0, 1]),
        ]
        for name in done
    ]
    columns = [
        Column("repeats x steps x views, noise"),
        Column("passes"),
        Column("s an image", "{:.2f}"),
        Column("cost", "{:.3f}"),
        Column("rank correlation", "{:.3f}"),
    ]
    what = f"DifFIQA's score and its cost: {len(paths)} images, on {device}; of a CPU, seconds of one core"
    Output(args.results, "python benchmarks/diffiqa.py", [args.weights]).add("diffiqa_cost", what, columns, rows)


def ranks_of(values: list[float]) -> np.ndarray:
    """Ranks from 0 on; the scores of different images do not tie."""
    return np.argsort(np.argsort(values))


if __name__ == "__main__":
    main()
