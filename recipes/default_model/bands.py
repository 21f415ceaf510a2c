"""Measure the bands of the shipped weights, whatever weights are there: weights/bands_*.json, results/bands.json.

    python -m recipes.default_model.bands --data ../shared/data --results results

Scores all faces of two pair sets, LFW's test identities and CelebA, and measures both sets as one. The recognition
models are faceplugin's and dlib's, which had no part in the training of the default model. Embeddings that are not in
EMBEDDINGS/SET/MODEL.npz are computed first. No weights were trained on LFW's test identities. They were trained on
most faces of CelebA, so that these score a little too high; the table says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from tqdm import tqdm

import evaluate
from command_line import natural
from evaluation.bands import as_lines, measure_bands, pair_errors, rates
from evaluation.bench import Bootstrap, similarities
from evaluation.edc import Floats
from evaluation.embeddings import read_embeddings
from evaluation.pairs import Pairs, read_pairs
from model.bands import BANDS, Bands
from model.checkpoint import sha256_of
from model.files import write_text
from model.provenance import sha256_of_input, versions
from model.weights import find_weights
from recipes.default_model.crops import data_file
from recipes.default_model.reports.results import Cell, Column, Output, name_of, report_exit_code
from scoring import Scorer
from scoring.bands import bands_file

SETS = {"lfw_test": "LFW, test identities", "celeba_dev": "CelebA, most faces seen in training"}
MODELS = {"faceplugin": "fr/faceplugin_fr_feature.onnx", "dlib": "dlib"}
FMR, FNMR = 1e-3, (0.05, 0.02)  # of all pairs in medium or high, and of those in high
WEIGHTS = ("clib-fiqa",)
WITH_INTERVAL = {"1": "{:.3f}", "3": "{:.3f} [{:.3f}, {:.3f}]"}


@dataclass(frozen=True)
class Measured:
    """The pairs of one set and their similarities (P,) under each recognition model."""

    pairs: Pairs
    similarity: Mapping[str, Floats]


def run(args: argparse.Namespace) -> int:
    sets = {name: measured_set(args, name) for name in SETS}
    whole = joined(list(sets.values()))
    output = Output(args.results, "python -m recipes.default_model.bands", WEIGHTS)
    rows: list[list[Cell]] = []
    for weights in args.weights:
        scorer, quality = Scorer(weights=weights, bands=None), {}
        for name, one in sets.items():
            paths = [str(args.data / image) for image in one.pairs.names]
            scores = tqdm(scorer.stream(paths, args.workers), total=len(paths), unit=" images", disable=None)
            quality[name] = np.array([-np.inf if score.quality is None else score.quality for score in scores])
        measured = measure_bands(
            whole.pairs, np.concatenate([*quality.values()]), whole.similarity, FMR, FNMR, Bootstrap(args.bootstrap)
        )
        models = {name: read_embeddings(embeddings_file(args, "lfw_test", name)).model_sha256 for name in MODELS}
        set_name = "; ".join(SETS.values())
        table = Bands(set_name, sha256_of(find_weights(weights)), FMR, models, measured, source_of(args))
        table.write(bands_file(find_weights(weights)))
        print("\n".join(as_lines(table)), file=sys.stderr)
        rows += rows_of(name_of(weights), table, whole, sets, quality)
    columns = [Column("weights"), Column("faces")]
    columns += [Column(f"{band} begins at", WITH_INTERVAL) for band in BANDS[1:]]
    columns += [Column(f"{band}: share of pairs", "{:.3f}") for band in BANDS]
    columns += [Column(f"{band}: FNMR", WITH_INTERVAL) for band in BANDS]
    output.add("bands", f"FNMR at FMR {FMR:g} by band, mean over {' and '.join(MODELS)}", columns, rows)
    return 0


def measured_set(args: argparse.Namespace, name: str) -> Measured:
    """A pair set; embeddings that are missing are computed."""
    pairs = read_pairs(data_file(args.data, f"pairs/{name}.tsv"))
    similarity = {}
    for model, fr in MODELS.items():
        file = embeddings_file(args, name, model)
        if not file.is_file():
            listed = file.with_name("images.txt")
            listed.parent.mkdir(parents=True, exist_ok=True)
            write_text(listed, "".join(f"{args.data / image}\n" for image in pairs.names))
            fr = fr if fr == "dlib" else str(args.data / fr)
            if evaluate.main(["embed", f"@{listed}", "--fr", fr, "--output", str(file)]):
                raise RuntimeError(f"the embeddings of {listed} were not made: {file} is missing")
        similarity[model] = similarities(pairs, read_embeddings(file), str(file))
    return Measured(pairs, similarity)


def embeddings_file(args: argparse.Namespace, name: str, model: str) -> Path:
    return args.embeddings / name / f"{model}.npz"


def joined(sets: Sequence[Measured]) -> Measured:
    """All pairs as one list, whose thresholds are common."""
    starts = np.cumsum([0, *(len(one.pairs.names) for one in sets)])[:-1].tolist()
    pairs = Pairs(
        [name for one in sets for name in one.pairs.names],
        np.concatenate([one.pairs.first + start for one, start in zip(sets, starts, strict=True)]),
        np.concatenate([one.pairs.second + start for one, start in zip(sets, starts, strict=True)]),
        np.concatenate([one.pairs.mated for one in sets]),
    )
    return Measured(pairs, {model: np.concatenate([one.similarity[model] for one in sets]) for model in MODELS})


def rows_of(
    weights: str, table: Bands, whole: Measured, sets: Mapping[str, Measured], quality: Mapping[str, Floats]
) -> Iterator[list[Cell]]:
    """For both sets together, with intervals, and for each alone, under the common thresholds: where the bands begin,
    shares of the pairs and FNMR by band."""
    begins = [with_interval(one.lowest, one.lowest_ci) for one in table.measured[1:]]
    fnmr = [with_interval(one.fnmr, one.fnmr_ci) for one in table.measured]
    yield [weights, "both", *begins, *(one.share for one in table.measured), *fnmr]
    errors, start = pair_errors(whole.similarity, whole.pairs.mated, FMR), 0
    for name, one in sets.items():
        mated = one.pairs.mated
        worse = np.minimum(quality[name][one.pairs.first[mated]], quality[name][one.pairs.second[mated]])
        band = np.searchsorted([table.lowest(name) for name in BANDS], worse, side="right") - 1
        rate, _ = rates(band, errors[start : start + len(worse)], np.ones(len(worse)))
        shares = np.bincount(band, minlength=len(BANDS)) / len(band)
        yield [weights, SETS[name], None, None, *shares.tolist(), *(None if np.isnan(x) else x for x in rate.tolist())]
        start += len(worse)


def with_interval(value: float | None, interval: Sequence[float] | None) -> Cell:
    return value if value is None or interval is None else [value, *interval]


def source_of(args: argparse.Namespace) -> dict[str, object]:
    """What the table rests on. Paths begin below the data folder, so that they say nothing of this machine."""
    lists = {f"pairs/{name}.tsv": sha256_of_input(args.data / f"pairs/{name}.tsv") for name in SETS}
    files = {f"{name}/{model}.npz": embeddings_file(args, name, model) for name in SETS for model in MODELS}
    found = {name: sha256_of_input(file) for name, file in files.items()}
    return {
        "command": "python -m recipes.default_model.bands",
        "inputs": {**lists, **found},
        "bootstrap": args.bootstrap,
        "seed": 0,
        "date": date.today().isoformat(),
        "versions": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with faces/, fr/ and pairs/")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), help="names or files (the default model)")
    folder = Path("runs/evaluation")
    parser.add_argument("--embeddings", type=Path, default=folder, help="EMBEDDINGS/SET/MODEL.npz (runs/evaluation)")
    parser.add_argument("--bootstrap", type=natural, default=1000, metavar="N", help="replicates (1000)")
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes that read images (0)")
    return report_exit_code(parser, run, arguments, "stopped; tables that were measured to their end are written")


if __name__ == "__main__":
    sys.exit(main())
