"""Exported graphs beside the torch scorer, in one run: speed, and for int8 what it does to the ranking of faces.

    python benchmarks/export.py --data ../shared/data --evaluation runs/evaluation --results results

For each of the shipped models fp32, fp16 and int8 are exported to runs/export, and run in onnxruntime and OpenVINO.
int8 is calibrated on LFW's training identities, half of them damaged; no test identity is among them. `--evaluation` is
the folder of benchmarks/evaluation_table.sh, of which the embeddings of both sets are taken.

The floors: in onnxruntime int8 ranks both sets with a rank correlation of at least 0.99 to fp32, no pAUC(0.3) moves by
more than 0.005, and in one of the two engines int8 is at least 1.5 times as fast as torch in fp32. With one thread the
processor time is measured, which other work on the machine changes little. Everything takes its turn, in several
rounds, and the best counts.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bundle.int8 import Faces  # noqa: E402
from bundle.write import BATCH_SIZE, MODEL, export, load_scorer  # noqa: E402
from command_line import keep_freed_memory, positive  # noqa: E402
from evaluation.bench import Bootstrap, image_quality, iso, similarities  # noqa: E402
from evaluation.embeddings import read_embeddings  # noqa: E402
from evaluation.pairs import Pairs, read_pairs  # noqa: E402
from faces.degradations import KINDS, degrade  # noqa: E402
from faces.reader import read_image  # noqa: E402
from model.statistics import rank_correlation  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402
from scoring import Scorer  # noqa: E402
from scoring.contract import Batch  # noqa: E402

MODELS = ("clib-fiqa",)
PRECISIONS = ("fp32", "fp16", "int8")
SETS = {"celeba_dev": "CelebA", "lfw_test": "LFW"}
FMRS, LIMIT = (1e-2, 1e-3), 0.3
LOWEST_RANK_CORRELATION, LARGEST_PAUC_CHANGE, LOWEST_GAIN = 0.99, 0.005, 1.5
AUTOMATIC = "in bf16 where the processor has it"
Rows = Sequence[Sequence[Any]]
Score = Callable[[np.ndarray], np.ndarray]  # crops (N, S, S, 3) uint8 -> qualities (N,)


def calibration_faces(data: Path, folder: Path, count: int) -> Path:
    """Crops of `count` LFW training identities, every second one damaged, written once."""
    if folder.is_dir():
        return folder
    names = (data / "splits" / "lfw_train_identities.txt").read_text().split()
    rng = np.random.default_rng(0)
    kinds = list(KINDS)
    folder.mkdir(parents=True)
    for number, name in enumerate(rng.permutation(names)[:count]):
        face = read_image(min((data / "faces" / "lfw" / name).glob("*.jpg")))
        if number % 4 >= 2:  # so that both halves of the folder hold damaged ones
            face = degrade(face, kinds[number // 4 % len(kinds)], rng.uniform(0.1, 0.8), rng)
        Image.fromarray(face).save(folder / f"{number:04d}.png")
    return folder


def in_torch(scorer: Scorer) -> Score:
    @torch.inference_mode()
    def score(crops: np.ndarray) -> np.ndarray:
        return scorer.predict(Batch(torch.from_numpy(crops)[:, None], ())).quality.numpy()

    return score


def in_onnxruntime(folder: Path) -> Score:
    scorer = load_scorer(folder)
    return lambda crops: scorer.predict(crops)["quality"]


def in_openvino(folder: Path, precision: str) -> Score:
    """fp16 graphs compute in the precision that OpenVINO chooses by default, such as bf16; the others as they say."""
    from openvino import Core

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision != "fp16":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    request = Core().compile_model(folder / "model.onnx", "CPU", hints).create_infer_request()
    return lambda crops: request.infer({0: crops})[0].copy()


def best_rates(functions: Mapping[Any, Score], crops: np.ndarray, rounds: int) -> dict[Any, float]:
    """Images a second of processor time of each function, in batches of 16, after one batch that does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(functions, 0.0)
    for function in functions.values():
        function(crops[:BATCH_SIZE])
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            qualities(function, crops)
            best[name] = max(best[name], len(crops) / (clock() - start))
    return best


def qualities(score: Score, crops: np.ndarray) -> np.ndarray:
    return np.concatenate([score(crops[start : start + BATCH_SIZE]) for start in range(0, len(crops), BATCH_SIZE)])


def read_set(data: Path, name: str, few: int | None) -> tuple[Pairs, np.ndarray]:
    """The pairs of a set, and its crops in the order of `Pairs.names`; with `few` the pairs of so many images."""
    pairs = read_pairs(data / "pairs" / f"{name}.tsv")
    if few:
        kept = (pairs.first < few) & (pairs.second < few)
        pairs = Pairs(pairs.names[:few], pairs.first[kept], pairs.second[kept], pairs.mated[kept])
    return pairs, np.stack([read_image(data / file) for file in pairs.names])


def areas(pairs: Pairs, quality: np.ndarray, folder: Path) -> dict[tuple[str, float], tuple[float, float]]:
    """pAUC(0.3) and relative pAUC(0.3) under each FR model of the folder at each FMR."""
    table = {"": image_quality(pairs, dict(zip(pairs.names, quality.tolist(), strict=True)), "scores")}
    files = {file.stem: file for file in sorted(folder.glob("*.npz"))}
    if not files:
        raise ValueError(f"{folder} holds no embeddings (MODEL.npz): run benchmarks/evaluation_table.sh first")
    similarity = {name: similarities(pairs, read_embeddings(file), str(file)) for name, file in files.items()}
    results = iso(pairs, table, similarity, FMRS, [LIMIT], Bootstrap(0)).results
    return {(row["fr"], row["fmr"]): (row["pauc"] or 0.0, row["pauc_relative"] or 0.0) for row in results}


def bundles(args: argparse.Namespace) -> None:
    """Write a bundle for each model and precision."""
    faces = Faces(calibration_faces(args.data, args.work / "calibration", args.calibration), args.calibration)
    for weights in args.weights:
        for precision in PRECISIONS:
            folder, own = args.work / f"{weights}-{precision}", faces if precision == "int8" else Faces(None, 64)
            if args.keep and folder.is_dir():
                continue
            check = export(weights, None, folder, precision, "uint8", own)
            print(f"{weights}, {precision}: {check}", file=sys.stderr, flush=True)


def speeds(args: argparse.Namespace, crops: np.ndarray) -> Iterator[list[Cell]]:
    """A row for each model, engine and precision."""
    for weights in args.weights:
        functions: dict[tuple[str, str], Score] = {("torch", "fp32"): in_torch(Scorer(weights, device="cpu"))}
        for precision in PRECISIONS:
            folder = args.work / f"{weights}-{precision}"
            functions["onnxruntime", precision] = in_onnxruntime(folder)
            functions["OpenVINO", precision] = in_openvino(folder, precision)
        rates = best_rates(functions, crops, args.rounds)
        expected = qualities(functions["torch", "fp32"], crops)
        for (engine, precision), score in functions.items():
            size = None if engine == "torch" else (args.work / f"{weights}-{precision}" / MODEL).stat().st_size / 1e6
            found = qualities(score, crops)
            label = f"{precision}, by default {AUTOMATIC}" if (engine, precision) == ("OpenVINO", "fp16") else precision
            row: list[Cell] = [weights, engine, label, size, rates[engine, precision]]
            row.append(rates[engine, precision] / rates["torch", "fp32"])
            row += [float(np.abs(found - expected).max()), rank_correlation(found, expected)]
            yield row


def accuracy(args: argparse.Namespace, sets: Mapping[str, tuple[Pairs, np.ndarray]]) -> Iterator[list[Cell]]:
    """A row for each model and set: int8 in onnxruntime, against torch in fp32."""
    for weights in args.weights:
        int8, reference = in_onnxruntime(args.work / f"{weights}-int8"), in_torch(Scorer(weights, device="cpu"))
        for name, (pairs, crops) in sets.items():
            found, expected = qualities(int8, crops), qualities(reference, crops)
            ours, theirs = (areas(pairs, quality, args.evaluation / name) for quality in (found, expected))
            moved = [max(abs(ours[cell][place] - theirs[cell][place]) for cell in ours) for place in (0, 1)]
            difference = np.abs(found - expected)
            row: list[Cell] = [weights, SETS[name], len(crops), rank_correlation(found, expected)]
            yield [*row, float(difference.mean()), float(difference.max()), *moved]


def failures(speed: Rows, int8: Rows) -> Iterator[str]:
    """The floors that are not reached."""
    for weights in dict.fromkeys(row[0] for row in speed):
        gain = max(row[5] for row in speed if row[0] == weights and row[2] == "int8")
        if gain < LOWEST_GAIN:
            yield f"{weights}: int8 is {gain:.2f} times as fast as torch in fp32"
    for weights, name, _, rho, _, _, pauc, _ in int8:
        if rho < LOWEST_RANK_CORRELATION:
            yield f"{weights}, {name}: the rank correlation of int8 is {rho:.4f}"
        if pauc > LARGEST_PAUC_CHANGE:
            yield f"{weights}, {name}: a pAUC of int8 differs by {pauc:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="the data folder (docs/data.md)")
    add("--evaluation", type=Path, default=Path("runs/evaluation"), metavar="FOLDER", help="SET/MODEL.npz, embeddings")
    add("--work", type=Path, default=Path("runs/export"), metavar="FOLDER", help="bundles and calibration faces")
    add("--weights", nargs="+", default=list(MODELS), metavar="NAME", help=f"({' '.join(MODELS)})")
    add("--calibration", type=positive, default=1024, metavar="N", help="faces, half of them for the check (1024)")
    add("--images", type=positive, default=400, metavar="N", help="whose scoring is timed (400)")
    add("--rounds", type=positive, default=5, metavar="N", help="(5)")
    add("--keep", action="store_true", help="take bundles of an earlier run that are there")
    add("--few", type=positive, metavar="N", help="only the pairs of so many images of a set: to try it")
    add("--threads", type=positive, metavar="N", default=1, help="of torch and of both engines (1)")
    add_results_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    output = Output(args.results, shlex.join(["python", "benchmarks/export.py", *sys.argv[1:]]), args.weights)
    sets = {name: read_set(args.data, name, args.few) for name in SETS}
    bundles(args)
    columns = [Column("model"), Column("engine"), Column("precision"), Column("MB", "{:.1f}"),
               Column("images/s", "{:.0f}"), Column("times torch", "{:.2f}"), Column("largest difference", "{:.1g}"),
               Column("rank correlation", "{:.4f}")]
    where = f"{args.images} CelebA crops, batches of {BATCH_SIZE}, threads: {args.threads}"
    what = f"Exported graphs beside torch: {where}"
    speed = list(speeds(args, sets["celeba_dev"][1][: args.images]))
    output.add("export", what, columns, speed)
    columns = [Column("model"), Column("set"), Column("images"), Column("rank correlation", "{:.4f}"),
               Column("mean difference", "{:.4f}"), Column("largest difference", "{:.3f}"),
               Column("largest change of pAUC", "{:.5f}"), Column("of relative pAUC", "{:.3f}")]
    int8 = list(accuracy(args, sets))
    output.add("export_int8", "int8 in onnxruntime against torch in fp32, pAUC(0.3)", columns, int8)
    failed = list(failures(speed, int8))
    print("\n".join(failed) or "every floor is reached")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
