"""What DifFIQA's score costs, and how much of it cheaper procedures keep.

    python benchmarks/diffiqa.py FACES --weights DIFFUSION --fr MODEL --output runs/cost --count 96 \
        --embeddings faceplugin=runs/evaluation/celeba_dev/faceplugin.npz

Each procedure scores the same images: of identities in random order the first --each images, up to --count. FACES has a
folder for each identity. A table is written to the folder OUTPUT as soon as it is done, and one that is there is not
made again. The printed table holds, for each procedure: passes through the UNet for an image, seconds for an image,
Spearman's correlation with the full procedure, and for each judge of --embeddings the relative pAUC(0.3) of the
error-versus-discard curve with its 95 % interval (lower is better; evaluation/bench.py). On a CPU the seconds are those
of the processor, so that other programs hardly change them. `another seed` is the full procedure with other noise: no
cheaper one can be expected to correlate better. Aim: 0.98 at a tenth of the cost.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import keep_freed_memory, positive  # noqa: E402
from evaluation.bench import Bootstrap, image_quality, iso, similarities  # noqa: E402
from evaluation.embeddings import read_embeddings  # noqa: E402
from evaluation.make_pairs import draw_pairs  # noqa: E402
from evaluation.pairs import read_pairs, write_pairs  # noqa: E402
from evaluation.scores import read_scores, write_scores  # noqa: E402
from evaluation.tables import DEFAULT_LIMIT  # noqa: E402
from faces.listing import expand_inputs  # noqa: E402
from faces.workers import load_batches  # noqa: E402
from labels.measure import write_json  # noqa: E402
from labels.recognition import load_recognizer  # noqa: E402
from methods.diffiqa.quality import PRESETS, Procedure, make_scorer  # noqa: E402
from model import load  # noqa: E402
from model.device import pick_device  # noqa: E402
from model.fast import PRECISIONS  # noqa: E402
from recipes.default_model.reports.edc_tables import power, value_of  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402

FULL, FAST = PRESETS["full"], PRESETS["fast"]
CHEAPER = ((2, 3, 2), (2, 2, 2), (2, 3, 1), (1, 3, 2), (1, 2, 2), (1, 3, 1), (1, 1, 1))
PROCEDURES: dict[str, tuple[Procedure, str]] = {  # name -> procedure, precision of the UNet
    "full": (FULL, "fp32"),
    "full, another seed": (replace(FULL, seed=1), "fp32"),
    "full, half precision": (FULL, "bf16"),
    "full, shared noise": (replace(FULL, noise="shared"), "fp32"),
    "full, one view": (replace(FULL, views=1), "fp32"),
    "full, five steps": (replace(FULL, ddim_steps=5), "fp32"),
    **{
        f"{repeats} x {steps} x {views}": (replace(FULL, repeats=repeats, ddim_steps=steps, views=views), "fp32")
        for repeats, steps, views in CHEAPER
    },
    "1 x 3 x 2, half precision": (FAST, "bf16"),
    "1 x 3 x 2, shared noise": (replace(FAST, noise="shared"), "fp32"),
}
FMR, NON_MATED, MATED = 1e-2, 60_000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", nargs="+", help="aligned crops: a folder, patterns, or @list.txt")
    parser.add_argument("--weights", required=True, help="the diffusion model")
    parser.add_argument("--fr", required=True, help="the FR model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables and costs.json")
    parser.add_argument("--embeddings", nargs="+", default=[], metavar="NAME=FILE.npz", help="of the judging FR models")
    parser.add_argument("--count", type=positive, default=96, help="images (96)")
    parser.add_argument("--each", type=positive, default=6, help="images of an identity (6)")
    parser.add_argument("--only", nargs="+", default=list(PROCEDURES), choices=PROCEDURES, help="procedures (all)")
    parser.add_argument("--device", default="auto")
    add_results_option(parser)
    parser.add_argument("--batch-size", type=positive, default=8, help="images at a time on a GPU (8)")
    args = parser.parse_args()
    keep_freed_memory()
    args.output.mkdir(parents=True, exist_ok=True)
    paths = chosen(list(expand_inputs(args.faces, sys.stdin)), args.count, args.each)

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

    scores = {
        name: read_scores(args.output / f"{name}.csv")
        for name in PROCEDURES
        if name in seconds and (args.output / f"{name}.csv").is_file()
    }
    if "full" not in scores:
        return
    ranks = {name: ranks_of(list(table.values())) for name, table in scores.items()}
    judges = dict(item.partition("=")[::2] for item in args.embeddings)
    areas = relative_areas(scores, judges, args.output / "pairs.tsv") if judges else {}
    rows_of_table: list[list[Cell]] = [
        [
            name,
            PROCEDURES[name][0].passes(),
            seconds[name],
            seconds[name] / seconds["full"],
            float(np.corrcoef(ranks[name], ranks["full"])[0, 1]),
            *(areas[name, judge] for judge in judges),
        ]
        for name in scores
    ]
    columns = [
        Column("repeats x steps x views"),
        Column("passes"),
        Column("s an image", "{:.2f}"),
        Column("cost", "{:.3f}"),
        Column("rank correlation", "{:.3f}"),
        *(Column(f"{judge} @ {power(FMR)}", "{:.3f} [{:.2f}, {:.2f}]") for judge in judges),
    ]
    what = f"DifFIQA's score and its cost: {len(paths)} images, on {device}; of a CPU, seconds of one core"
    command = shlex.join(["python", "benchmarks/diffiqa.py", *sys.argv[1:]])
    Output(args.results, command, [args.weights]).add("diffiqa_cost", what, columns, rows_of_table)


def chosen(paths: Sequence[str], count: int, each: int) -> list[str]:
    """At most `count` paths, sorted: of identities (folders) in random order the first `each`; who has fewer is left
    out, so that all identities count alike in the pairs."""
    own: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        own[str(PurePath(path).parent)].append(path)
    groups = [images[:each] for images in own.values() if len(images) >= each]
    if not groups:
        raise SystemExit(f"no folder has {each} images; lower --each")
    order = np.random.default_rng(0).permutation(len(groups)).tolist()
    return sorted([path for index in order for path in groups[index]][:count])


def relative_areas(
    scores: Mapping[str, Mapping[str, float]], judges: Mapping[str, str], file: Path
) -> dict[tuple[str, str], Cell]:
    """(procedure, judge) -> relative pAUC(0.3) and its interval; the pairs of the images are written to `file`."""
    write_pairs(file, draw_pairs(list(scores["full"]), MATED, NON_MATED, seed=0))
    pairs = read_pairs(file)
    qualities = {name: image_quality(pairs, table, name) for name, table in scores.items()}
    found = {judge: similarities(pairs, read_embeddings(npz), npz) for judge, npz in judges.items()}
    results = iso(pairs, qualities, found, [FMR], [DEFAULT_LIMIT], Bootstrap()).results
    return {(row["method"], row["fr"]): value_of(row) for row in results}


def ranks_of(values: list[float]) -> np.ndarray:
    """Ranks from 0 on; the scores of different images do not tie."""
    return np.argsort(np.argsort(values))


if __name__ == "__main__":
    main()
