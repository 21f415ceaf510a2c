"""What degradation encoders know: retrieval of a degradation across contents, and probes, as a table.

    python -m recipes.dsl_fiqa.encoders ../shared/data/raw --set runs/dsl_fiqa/set --recognizer fr.safetensors \\
        --encoder "supervised contrast=runs/dsl_fiqa/de/degradation_encoder.safetensors" --encoder "classifier=..."

The photographs are those of people in the test part of a set, so no encoder learned from them. Beside the trained
encoders stand a new one with random weights, in the sizes of the first, and the last features of a face recognition
network, which tell people apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from command_line import natural, positive
from faces.degradations import PHOTOGRAPHIC
from methods.dsl_fiqa.data import read_rated_set
from methods.dsl_fiqa.retrieval import UNTRAINED, damaged_crops, drawn, encode, figures_of, load_encoders
from model.loading import load
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from recipes.dsl_fiqa.strength import held_out_kinds, read_damage

SIZE = 128  # side of the crops
RECOGNITION_SIZE = 112
FIGURES = ("top1", "map", "content_top1", "kind_accuracy", "strength_srcc")


@torch.inference_mode()
def recognition_features(path: Path, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings (N, D) of unit length of the middle of crops, uint8 (S, S, 3), brought to the network's size."""
    network = load(path)
    found = []
    for start in range(0, len(crops), 16):
        batch = torch.from_numpy(np.stack(crops[start : start + 16])).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(batch, RECOGNITION_SIZE, mode="bilinear", antialias=True)
        images = resized.round().to(torch.uint8).permute(0, 2, 3, 1)
        found.append(torch.nn.functional.normalize(network(network.preprocessing.normalise(images)), dim=1).numpy())
    return np.concatenate(found)


def rows_of(args: argparse.Namespace, paths: Sequence[str], held_out: Sequence[str]) -> Iterator[list[Cell]]:
    """A row for each encoder, over all kinds and over the held-out ones."""
    seen = [kind for kind in PHOTOGRAPHIC if kind not in held_out]
    for where, kinds in {"trained kinds": seen, "held-out kinds": list(held_out)}.items():
        crops, *facts = damaged_crops(paths, kinds, SIZE, args.seed)
        called = {file: name for name, file in args.encoder} | {UNTRAINED: UNTRAINED}
        for file, encoder in load_encoders(list(called)).items():
            vectors, features = encode(encoder.eval(), crops, torch.device("cpu"))
            yield [where, called[file], *(figures_of(vectors, features, *facts)[key] for key in FIGURES)]
        vectors = recognition_features(args.recognizer, crops)
        yield [where, "face recognition", *(figures_of(vectors, vectors, *facts)[key] for key in FIGURES)]


def named_file(text: str) -> tuple[str, str]:
    """NAME=FILE of a command line."""
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, file


def report(args: argparse.Namespace) -> int:
    people = read_damage(read_rated_set(args.set / "test", False))
    found = sorted({path for path in people.photographs.tolist() if Path(path).is_relative_to(args.photos)})
    paths = drawn(found, args.limit, args.seed)
    columns = [Column("kinds"), Column("features")]
    heads = ("top-1", "mAP", "same photograph first", "kind, probe", "strength, probe (SRCC)")
    columns += [Column(head, "{:.3f}") for head in heads]
    what = f"Retrieval of the same kind and strength among {len(paths)} photographs of unseen people, and probes"
    output = Output(args.results, "make dsl-fiqa-reports")
    output.add("dsl_fiqa_retrieval", what, columns, rows_of(args, paths, held_out_kinds(args.set)))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 for a photograph that cannot be read, 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder from which the set was made")
    parser.add_argument("--set", type=Path, required=True, help="the set of methods.dsl_fiqa.make_set")
    parser.add_argument(
        "--encoder", type=named_file, action="append", required=True, metavar="NAME=FILE", help="may be repeated"
    )
    parser.add_argument("--recognizer", type=Path, required=True, help="a face recognition network")
    parser.add_argument("--limit", type=positive, default=20, help="photographs (default: 20)")
    parser.add_argument("--seed", type=natural, default=0)
    return report_exit_code(parser, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
