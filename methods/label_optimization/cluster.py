"""Cluster the images of each identity by their embeddings, the first step of label optimisation (IWBF 2023).

    python evaluate.py embed FACES --fr MODEL --output embeddings.npz
    python -m methods.label_optimization.cluster --embeddings embeddings.npz --output clusters.tsv
    python -m methods.label_optimization.optimize --scores scores.csv --embeddings embeddings.npz \\
        --clusters clusters.tsv --output optimised.tsv

The identity of an image is the folder that holds it. Images are later compared across the clusters of their identity,
so each image meets faces that look different. An identity with fewer images than clusters has a cluster for each image.
The result, `path identity cluster`, depends on the seed and not on the order of the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from command_line import exit_code, natural, positive
from evaluation.embeddings import Embeddings
from evaluation.inputs import identities_of, read_any_embeddings, take_rows, write_tsv
from methods.label_optimization.kmeans import k_means
from methods.label_optimization.tables import CLUSTER_COLUMNS
from model.files import only_writer


def cluster(embeddings: Embeddings, source: str | Path, clusters: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """(name, identity, cluster) of each image, by identity and name, as they are found."""
    identities = identities_of(embeddings.names, source)
    keys = list(zip(identities, embeddings.names, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for identity, group in groupby(order, key=identities.__getitem__):
        rows = np.array(list(group))
        found = np.asarray(take_rows(embeddings, source, rows), np.float32)
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        # A generator for each identity: what else is in the file does not change its clusters.
        generator = np.random.default_rng((seed, *identity.encode(errors="surrogateescape")))
        for row, number in zip(rows.tolist(), k_means(unit, clusters, generator).tolist(), strict=True):
            yield embeddings.names[row], identity, number


def run(args: argparse.Namespace) -> int:
    with only_writer(args.output):
        embeddings = read_any_embeddings(args.embeddings)
        if len(set(embeddings.names)) < len(embeddings.names):
            raise ValueError(f"{args.embeddings} names an image twice; each was expected once")
        found = cluster(embeddings, args.embeddings, args.clusters, args.seed)
        bar = tqdm(found, "clustering", len(embeddings.names), unit="image", leave=False, disable=None)
        write_tsv(args.output, CLUSTER_COLUMNS, bar)
    print(args.output)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        "methods.label_optimization.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    embeddings_help = "embeddings of `evaluate.py embed`, or a pickle of a dict of name and array"
    parser.add_argument("--embeddings", type=Path, required=True, metavar="EMBEDDINGS.npz", help=embeddings_help)
    parser.add_argument("--output", type=Path, required=True, metavar="CLUSTERS.tsv", help="the table to write")
    parser.add_argument("--clusters", type=positive, default=20, metavar="N", help="most clusters of an identity (20)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the start of k-means (0)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
