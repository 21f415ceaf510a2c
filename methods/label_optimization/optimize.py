"""Optimise the quality scores or labels of a folder of identities (Babnik, Damer, Štruc, IWBF 2023).

    python -m methods.label_optimization.cluster --embeddings embeddings.npz --output clusters.tsv
    python -m methods.label_optimization.optimize --scores scores.csv --embeddings embeddings.npz \\
        --clusters clusters.tsv --output optimised.tsv

SCORES is any table of scores (CSV, TSV, JSONL, Parquet, pickle, `path score` lines) or a label table. Images of one
identity are compared across its clusters; a face that others of its identity resemble moves up, one that they do not
resemble moves down. The qualities are dealt out anew in the new order, so their histogram stays exactly the same.

The output has the columns `path quality`. From a label table it is a label table with the new qualities, which
train.py reads. Both serve as --scores of methods.ediffiqa.prepare and as --labels of methods.label_optimization.train.

An epsilon of 0 changes nothing. Ranks of pairs run to about (clusters - 1) times the number of images, so epsilon also
scales: with 20 clusters 0.001 moves the order gently and 0.1 replaces most of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from command_line import exit_code, natural, positive
from evaluation.inputs import read_any_embeddings, read_qualities, require_identities, take_rows
from evaluation.names import match_names
from methods.label_optimization.ranks import distinct_iterations, optimise, sort_into_clusters
from methods.label_optimization.tables import read_clusters, write_optimised
from model.files import only_writer


def optimise_table(args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Name -> optimised quality in the order of --scores, and the mean of how far the images moved, in ranks."""
    scores = read_qualities(args.scores, args.skip_unscored)
    names = list(scores)
    clustered, identities, clusters = read_clusters(args.clusters)
    rows = match_names(names, clustered, str(args.clusters)).tolist()
    identities = [identities[row] for row in rows]
    require_identities(identities, args.scores)
    clustering = sort_into_clusters([clustered[row] for row in rows], identities, [clusters[row] for row in rows])
    if clustering.pairs == 0:
        raise ValueError(f"{args.clusters}: each identity has one cluster, so there are no pairs to compare")
    embeddings = read_any_embeddings(args.embeddings)
    found = match_names(names, embeddings.names, str(args.embeddings))
    total = len(names) * distinct_iterations(clustering, args.iterations, args.partner)
    with tqdm(total=total, desc="comparing", unit="image", leave=False, disable=None) as bar:
        result = optimise(
            np.array(list(scores.values())),
            lambda images: take_rows(embeddings, args.embeddings, found[images]),
            clustering,
            args.epsilon,
            args.iterations,
            args.seed,
            args.partner,
            bar.update,
        )
    if len(rows) < len(clustered):
        print(f"left out: {len(clustered) - len(rows)} images of {args.clusters} without a score", file=sys.stderr)
    moved = np.abs(np.argsort(np.argsort(result.rank, kind="stable")) - result.base_rank).mean()
    return dict(zip(names, result.quality.tolist(), strict=True)), float(moved)


def run(args: argparse.Namespace) -> int:
    with only_writer(args.output):
        quality, moved = optimise_table(args)
        write_optimised(args.output, args.scores, quality)
    print(f"{len(quality)} images, moved by {moved:.1f} places on average", file=sys.stderr)
    print(args.output)
    return 0


def share(text: str) -> float:
    """A number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 was expected, not {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        "methods.label_optimization.optimize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    embeddings_help = "embeddings of `evaluate.py embed`, or a pickle of a dict of name and array"
    clusters_help = "clusters of methods.label_optimization.cluster, or the published pickle"
    partner_help = "of each other cluster: a random member (default), or the one of the lowest name (deterministic)"
    skip_help = "leave out images without a quality (files that could not be read); else they are an error"
    parser.add_argument("--scores", type=Path, required=True, metavar="SCORES", help="table of scores or labels")
    parser.add_argument("--embeddings", type=Path, required=True, metavar="EMBEDDINGS.npz", help=embeddings_help)
    parser.add_argument("--clusters", type=Path, required=True, metavar="CLUSTERS.tsv", help=clusters_help)
    parser.add_argument("--output", type=Path, required=True, metavar="SCORES.tsv", help="the table to write")
    parser.add_argument("--epsilon", type=share, default=0.001, metavar="X", help="share of the move (0.001)")
    parser.add_argument("--iterations", type=positive, default=10, metavar="N", help="random pairings to average (10)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the random partners (0)")
    parser.add_argument("--partner", choices=("random", "first"), default="random", help=partner_help)
    parser.add_argument("--skip-unscored", action="store_true", help=skip_help)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
