"""What a degradation encoder knows: retrieval of a degradation across contents, and linear probes of it.

    python -m methods.dsl_fiqa.retrieval PHOTOS --encoders runs/de/degradation_encoder.safetensors untrained

Each photograph is damaged in every kind at several strengths. A query should find pictures of its own kind and
strength; the same photograph with another degradation is the distractor. The probes are ridge regressions from the
encoder's features on one half of the photographs, read on the other: accuracy of the kind, SRCC of the strength.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch

from command_line import exit_code, keep_freed_memory, natural, positive
from faces.degradations import require_photographic
from faces.reader import read_image
from methods.dsl_fiqa.data import photographs
from methods.dsl_fiqa.degradation import Sample, crop_of, normalise, represent
from methods.dsl_fiqa.networks import load_encoder
from model.degradation_encoder import DegradationEncoder
from model.device import pick_device
from model.statistics import rank_correlation

UNTRAINED = "untrained"  # in place of a file: random weights, in the sizes of the first file
STRENGTHS = (0.2, 0.5, 0.8)
RIDGE = 1e-2  # of the probes, for features of standard deviation 1


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of queries whose nearest neighbour has their label (top1), and mean average precision (map).

    vectors: (N, D) of unit length; labels: (N,). Every picture is a query against all others; a query whose label no
    other picture has does not count.
    """
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]  # the last is the query itself
    hits = labels[order] == labels[:, None]
    known = hits.any(axis=1)
    ranks = np.arange(1, hits.shape[1] + 1)
    precision = (np.cumsum(hits, axis=1) / ranks * hits).sum(axis=1)[known] / hits.sum(axis=1)[known]
    return {"top1": float(hits[known, 0].mean()), "map": float(precision.mean())}


def probe(features: np.ndarray, targets: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Predictions (M, K) for the rows outside `train` (bool (N,)) of a ridge regression on those inside.

    features: (N, D); targets: (N, K).
    """
    mean, std = features[train].mean(axis=0), features[train].std(axis=0) + 1e-8
    x = np.column_stack([(features - mean) / std, np.ones(len(features))])
    known = x[train]
    weights = np.linalg.solve(known.T @ known + RIDGE * len(known) * np.eye(x.shape[1]), known.T @ targets[train])
    return x[~train] @ weights


def probes(features: np.ndarray, kinds: np.ndarray, strengths: np.ndarray, contents: np.ndarray) -> dict[str, float]:
    """Accuracy of the kind and mean SRCC of the strength within a kind, on every second content. All but features are
    (N,): numbers of the kind and of the content, and the strength."""
    train = contents % 2 == 0
    one_hot = np.eye(kinds.max() + 1)[kinds]
    kind = probe(features, one_hot, train).argmax(axis=1)
    strength = probe(features, strengths[:, None], train)[:, 0]
    unseen, true = kinds[~train], strengths[~train]
    within = [rank_correlation(strength[unseen == k], true[unseen == k]) for k in np.unique(unseen)]
    return {"kind_accuracy": float((kind == unseen).mean()), "strength_srcc": float(np.mean(within))}


@torch.inference_mode()
def encode(encoder: DegradationEncoder, crops: Sequence[np.ndarray], device: torch.device) -> tuple[np.ndarray, ...]:
    """Representations (N, C) of unit length, and the mean features (N, C), of crops."""
    projected, features = [], []
    for start in range(0, len(crops), 16):
        batch = torch.from_numpy(np.stack(crops[start : start + 16])).to(device)
        seen, compared = encoder(normalise(encoder, batch))
        projected.append(represent(compared, "mean").cpu().numpy())
        features.append(seen.mean(dim=(1, 2)).cpu().numpy())
    return np.concatenate(projected), np.concatenate(features)


def damaged_crops(
    paths: Sequence[str], kinds: Sequence[str], size: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """A crop of each photograph for each kind and strength, and of each crop the numbers of kind, strength and content,
    three of (N,). Raises ImageError for a photograph that cannot be read."""
    rng = np.random.default_rng(seed)
    crops, facts = [], []
    for content, path in enumerate(paths):
        image = read_image(path)
        for number, kind in enumerate(kinds):
            for level, strength in enumerate(STRENGTHS):
                crops.append(crop_of(image, Sample(path, int(rng.integers(2**62)), kind, strength), size))
                facts.append((number, level, content))
    numbers, levels, contents = np.array(facts).T
    return crops, numbers, levels, contents


def figures_of(
    vectors: np.ndarray, features: np.ndarray, kinds: np.ndarray, levels: np.ndarray, contents: np.ndarray
) -> dict[str, float]:
    """Retrieval by unit vectors (N, D) of the same kind and strength, and of the same photograph (`content_top1`, the
    mistake that the distractor invites); and probes of features (N, F). The others are numbers (N,)."""
    found = retrieval(vectors, kinds * len(STRENGTHS) + levels)
    found["content_top1"] = retrieval(vectors, contents)["top1"]
    return found | probes(features, kinds, np.array(STRENGTHS)[levels], contents)


def drawn(paths: Sequence[str], limit: int, seed: int) -> list[str]:
    """At most `limit` of the paths. Raises ValueError for fewer than four."""
    chosen = [paths[row] for row in np.random.default_rng(seed).permutation(len(paths))[:limit]]
    if len(chosen) < 4:
        raise ValueError(f"{len(chosen)} photographs were found; at least four were expected")
    return chosen


def measure(args: argparse.Namespace) -> int:
    """Print the figures of each encoder as JSON."""
    device, kinds = pick_device(args.device), require_photographic(tuple(args.kinds))
    encoders = load_encoders(args.encoders)
    paths = drawn(photographs([args.photos], args.without), args.limit, args.seed)
    crops, *facts = damaged_crops(paths, kinds, args.size, args.seed)
    results = {}
    for name, encoder in encoders.items():
        vectors, features = encode(encoder.to(device).eval(), crops, device)
        results[name] = figures_of(vectors, features, *facts)
    print(json.dumps({"photographs": len(paths), "kinds": list(kinds), "encoders": results}, indent=1))
    return 0


def load_encoders(names: Sequence[str]) -> dict[str, DegradationEncoder]:
    """The encoders of files, and an untrained one."""
    files = {name: load_encoder(name) for name in names if name != UNTRAINED}
    if not files:
        raise ValueError("--encoders needs a file, whose sizes the untrained encoder takes")
    if UNTRAINED in names:
        torch.manual_seed(0)
        tensors = next(iter(files.values())).state_dict()
        files[UNTRAINED] = DegradationEncoder.shaped_like(tensors)
    return files


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "methods.dsl_fiqa.retrieval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="a folder of photographs that no encoder was trained on")
    parser.add_argument("--encoders", nargs="+", required=True, metavar="FILE", help=f"files, or {UNTRAINED}")
    parser.add_argument("--kinds", nargs="*", default=[], help="degradations; default: all")
    parser.add_argument("--without", nargs="*", default=[], help="files that name folders to leave out, one a line")
    parser.add_argument("--limit", type=positive, default=40, help="photographs (default: 40)")
    parser.add_argument("--size", type=positive, default=128, help="side of the crops (default: 128)")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0, 1 for a photograph that cannot be read, 2 for a call that was wrong, 130 for Ctrl-C."""

    def run() -> int:
        keep_freed_memory()
        return measure(parse_arguments())

    return exit_code(run, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
