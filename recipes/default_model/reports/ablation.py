"""Which parts of CLIB-FIQA's training earn their place at this scale: the paper's Table 4 on data anyone can obtain.

Every variant is trained with several seeds on LFW's training identities (rows of CelebA are left out) and judged by
Error-versus-Discard on CelebA and on LFW's test identities, under each FR model. The trunk of the image tower is
frozen, so its features are computed once and a run takes a minute.

    python -m recipes.default_model.reports.ablation --tables runs/default --output runs/ablation

Prints a table of pAUC(0.3) / (FNMR(0) * 0.3), lower is better: the mean over seeds and cells, and the interval of the
mean over the seeds (Student's t, 95 %). Finished runs are kept, so the same command continues an interrupted ablation.
With `--anchors` the variants are tables of quality anchors, to tell which ones make the better CLIB-FIQA. With
`--noise` anchors are wrong on purpose: those of a share of the identities are shuffled among the images of these
identities.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from command_line import exit_code, keep_freed_memory, positive
from config_train import PAPER, TrainConfig
from evaluation.bench import Bootstrap, iso, similarities
from evaluation.edc import Floats
from evaluation.embeddings import read_embeddings
from evaluation.pairs import read_pairs
from labels.label_table import read_labels
from methods.clib_fiqa.data import normalise_quality
from model.clib_fiqa import ClibFiqa
from model.files import write_text
from recipes.default_model.recipe import evaluation_levels, fit, hash_of_tensors, recipe, scores, training_faces
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option

SETS = ("celeba_dev", "lfw_test")
JUDGES = ("foamliu", "faceplugin", "dlib")
FMRS = (1e-2, 1e-3)
MIXED, RATIO, SHIFTED, CCS = "train.tsv", "ratio.tsv", "shifted.tsv", "ccs.tsv"  # tables: same rows, other anchors
PARTS = {"all cells": "", "CelebA": "celeba", "LFW": "lfw", "under dlib": "dlib"}  # dlib helped with no anchor
PUBLISHED_ANCHORS = {"normalise": "percentile"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> table, what differs from the recipe
    "quality only": (MIXED, {"calibration_epoch": 0, "factor_weight": 0.0}),
    "+ factors": (MIXED, {"calibration_epoch": 0}),
    "+ confidence calibration (recipe)": (MIXED, {}),
    "equations of the paper": (MIXED, PAPER),
    "equations of the code": (MIXED, {"focal": "batch"}),
    "anchor ratio, min-max (published)": (RATIO, {"normalise": "minmax"}),
    "anchor ratio, percentiles": (RATIO, PUBLISHED_ANCHORS),
    "anchor shifted, percentiles": (SHIFTED, PUBLISHED_ANCHORS),
    "anchor of CCS alone, robust": (CCS, {}),
}
STEPS = tuple(VARIANTS)[:3]  # what each adds to the one before is tested with wrong anchors too


class Bench:
    """The two evaluation sets: the levels of their images, and how a score is judged."""

    def __init__(self, args: argparse.Namespace, config: TrainConfig) -> None:
        lists = {name: args.data / "pairs" / f"{name}.tsv" for name in SETS}
        self.pairs = {name: read_pairs(file) for name, file in lists.items()}
        self.levels = {name: evaluation_levels(args.data, file, config, args.tables)[1] for name, file in lists.items()}
        self.similarities: dict[str, dict[str, Floats]] = {}
        for name, pairs in self.pairs.items():
            files = {fr: args.evaluation / name / f"{fr}.npz" for fr in JUDGES}
            found = {fr: similarities(pairs, read_embeddings(file), str(file)) for fr, file in files.items()}
            self.similarities[name] = found

    def fingerprint(self) -> bytes:
        """Changes with the images, the pairs and the embeddings that judge."""
        parts = [hash_of_tensors(self.levels).encode()]
        for name, pairs in self.pairs.items():
            arrays = [pairs.first, pairs.second, pairs.mated, *self.similarities[name].values()]
            parts += [array.tobytes() for array in arrays]
        return b"".join(parts)

    def judge(self, model: ClibFiqa) -> dict[str, float]:
        """Cell -> relative pAUC(0.3)."""
        cells: dict[str, float] = {}
        for name, pairs in self.pairs.items():
            quality = {"model": np.array(scores(model, self.levels[name]))}
            outcome = iso(pairs, quality, self.similarities[name], FMRS, (0.3,), Bootstrap(replicates=0))
            cells |= {f"{name} {row['fr']} {row['fmr']:g}": _number(row["pauc_relative"]) for row in outcome.results}
        return cells


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def variants(args: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """The ablation's, or the recipe with each of the tables of `--anchors`."""
    if not args.anchors:
        return {name: VARIANTS[name] for name in STEPS} if args.noise else VARIANTS
    pairs = [text.partition("=") for text in args.anchors]
    if bad := [name for name, _, table in pairs if not table]:
        raise ValueError(f"--anchors {bad[0]}: NAME=TABLE was expected")
    return {name: (table, PUBLISHED_ANCHORS) for name, _, table in pairs}


def results(args: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Each variant with the cells of its seeds."""
    base = recipe(args.tables / MIXED, args.start)
    args.output.mkdir(parents=True, exist_ok=True)
    labels = read_labels(base.data_list)
    identities = [label.identity or label.path for label in labels]
    is_lfw = torch.tensor([not identity.isdecimal() for identity in identities])
    faces, bench = training_faces(base), Bench(args, base)
    wanted = is_lfw & torch.tensor(["~" not in label.path or not args.originals for label in labels])
    readable = faces.images.usable[wanted[faces.images.usable]]
    inputs = hashlib.sha256(bench.fingerprint())
    inputs.update(hash_of_tensors({"levels": cast(Tensor, faces.images.cached), "usable": readable}).encode())
    inputs.update(Path(base.data_list).read_bytes() + args.start.read_bytes())
    for name, (table, differences) in variants(args).items():
        rows = read_labels(args.tables / table)
        anchors = {row.path: row.quality for row in rows}
        raw = torch.tensor([_number(anchors.get(label.path)) for label in labels], dtype=torch.float64)
        config = replace(base, **differences, freeze="trunk")
        faces.quality = normalise_quality(torch.where(is_lfw, raw, torch.nan), config.normalise).float()
        faces.images.usable = readable[faces.quality[readable].isfinite()]
        for share in args.noise or [0.0]:
            shown, seeds = (f"{name}, {share:.0%} shuffled" if args.noise else name), []
            for seed in range(args.seeds):
                seeded = replace(config, seed=seed)
                file = args.output / f"{shown} {seed} {key_of(seeded, args.tables / table, inputs.digest())}.json"
                if not file.is_file():
                    quality = shuffled(faces.quality, identities, faces.images.usable, share, seed)
                    cells = bench.judge(fit(seeded, replace(faces, quality=quality)))
                    write_text(file, json.dumps(cells, indent=1))
                seeds.append(json.loads(file.read_text()))
                print(f"{shown}, seed {seed}: {np.mean(list(seeds[-1].values())):.3f}", file=sys.stderr, flush=True)
            yield shown, seeds


def shuffled(quality: Tensor, identities: Sequence[str], rows: Tensor, share: float, seed: int) -> Tensor:
    """Anchors (N,) with those of a share of the identities exchanged at random among the `rows` of these identities."""
    if not share:
        return quality
    rng, names = np.random.default_rng(seed), sorted({identities[row] for row in rows.tolist()})
    wrong = set(rng.permutation(names)[: round(share * len(names))].tolist())
    chosen = torch.tensor([row for row in rows.tolist() if identities[row] in wrong])
    result = quality.clone()
    result[chosen] = quality[chosen[torch.from_numpy(rng.permutation(len(chosen)))]]
    return result


def key_of(config: TrainConfig, table: Path, inputs: bytes) -> str:
    """Names a finished run: a hash of its settings, of the table with its anchors, and of everything else it reads."""
    settings = repr(replace(config, data_list="", clip_model=""))  # their bytes count, and not where they lie
    return hashlib.sha256(settings.encode() + table.read_bytes() + inputs).hexdigest()[:16]


def variant_rows(found: Iterable[tuple[str, list[dict[str, float]]]]) -> Iterator[list[Cell]]:
    """A row a variant: for each of PARTS the mean over the seeds and half of its 95 % interval (Student's t)."""
    for name, seeds in found:
        cells: list[Cell] = [name]
        for part in PARTS.values():
            means = [np.mean([value for cell, value in seed.items() if part in cell]) for seed in seeds]
            half = student_t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
            cells.append([float(np.mean(means)), float(half)])
        yield cells


def report(args: argparse.Namespace) -> int:
    columns = [Column("variant"), *(Column(name, "{:.3f} ± {:.3f}", "min" if args.anchors else "") for name in PARTS)]
    what = f"Mean pAUC(0.3) / (FNMR(0) * 0.3) and the 95 % interval of the mean over {args.seeds} seeds"
    script = "benchmarks/anchors_table.sh" if args.anchors else "make ablation"
    output = Output(args.results, script)
    name = "anchors_trained" if args.anchors else "ablation_noise" if args.noise else "ablation"
    output.add(name, what, columns, variant_rows(results(args)))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with pairs/ and faces/")
    parser.add_argument("--tables", type=Path, default=Path("runs/default"), help="folder of the label tables")
    parser.add_argument("--start", type=Path, default=Path("runs/default/tiny.safetensors"), help="start weights")
    parser.add_argument("--evaluation", type=Path, default=Path("runs/evaluation"), help="folder of the embeddings")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder of the finished runs")
    anchors_help = "instead: the recipe with the anchors of these tables in --tables, whose rows may be fewer"
    parser.add_argument("--anchors", nargs="+", default=[], metavar="NAME=TABLE", help=anchors_help)
    noise_help = "instead: the first three variants with anchors shuffled among these shares of the identities"
    parser.add_argument("--noise", nargs="+", type=float, default=[], metavar="SHARE", help=noise_help)
    parser.add_argument("--originals", action="store_true", help="train without versions: a third of the time")
    parser.add_argument("--seeds", type=positive, default=3, help="two or more (3)")
    add_results_option(parser)
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        parser.error("--seeds 1 gives no interval: two or more were expected")
    if bad := [share for share in args.noise if not 0 <= share <= 1]:
        parser.error(f"--noise {bad[0]} must lie in [0, 1]")
    keep_freed_memory()
    return exit_code(lambda: report(args), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
