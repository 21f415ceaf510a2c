"""Prepare the training of eDifFIQA (Babnik, Peer, Štruc, TBIOM 2024): scores and embeddings -> class centres, items.

    python evaluate.py embed FACES --fr MODEL --output embeddings.npz
    python -m methods.ediffiqa.prepare --scores scores.csv --embeddings embeddings.npz --output runs/ediffiqa/data
    python -m methods.ediffiqa.train --items runs/ediffiqa/data --images FACES --teacher embeddings.npz \\
        --variant T --output runs/ediffiqa

The best share beta of all images is of high quality. An identity (the folder of an image) with fewer than --min-images
of those is left out, with all of its images. The centre of another is the mean embedding of its images of high quality.

FOLDER/items.tsv has a row `path score class` for every image of the identities that are left, and FOLDER/centres.npz
holds `identities` (n,) and `centres` (n, D) in the order of the classes, float32, not normalised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from command_line import exit_code, positive, share
from evaluation.embeddings import Embeddings
from evaluation.inputs import identities_of, read_any_embeddings, read_qualities, take_rows, write_tsv
from evaluation.names import match_names
from model.files import only_run, replacing

COLUMNS = ("path", "score", "class")  # of items.tsv


@dataclass(frozen=True)
class Selection:
    """What survives of N scored images: `threshold` is the lowest quality of the best share; `counts` is how many such
    images each identity has, in order of first appearance; `identities` (n,) are those with enough of them; `classes`
    (N,) is the index of each image's identity among these, or -1; `high` bool (N,) are the images of high quality."""

    threshold: float
    counts: dict[str, int]
    identities: list[str]
    classes: NDArray[np.int64]
    high: NDArray[np.bool_]


def select(quality: NDArray[np.float64], identities: Sequence[str], beta: float, min_images: int) -> Selection:
    """Which identities and images train, of qualities (N,) and the identity of each.

    The threshold is the quality at position int(beta * N) of the descending order; images of exactly this quality are
    of high quality too.
    """
    threshold = float(np.sort(quality)[::-1][int(beta * len(quality))])
    high = quality >= threshold
    names = list(dict.fromkeys(identities))  # in order of first appearance
    index = {name: number for number, name in enumerate(names)}
    own = np.array([index[identity] for identity in identities])
    counts = np.bincount(own[high], minlength=len(names))
    survives = counts >= min_images
    classes = np.where(survives, survives.cumsum() - 1, -1)
    kept = [name for name, keep in zip(names, survives, strict=True) if keep]
    return Selection(threshold, dict(zip(names, counts.tolist(), strict=True)), kept, classes[own], high)


def class_centres(selection: Selection, embeddings: Embeddings, source: Path, rows: NDArray[np.int64]) -> np.ndarray:
    """The mean embedding (n, D) of each class's images of high quality; `rows` (N,) are the images' embeddings."""
    used = np.flatnonzero(selection.high & (selection.classes >= 0))
    used = used[np.argsort(selection.classes[used], kind="stable")]
    parts = np.split(used, np.flatnonzero(np.diff(selection.classes[used])) + 1)
    centres: np.ndarray = np.empty((len(parts), embeddings.rows.shape[1]), np.float32)
    for number, part in enumerate(tqdm(parts, "centres", unit="identity", leave=False, disable=None)):
        centres[number] = take_rows(embeddings, source, rows[part]).mean(axis=0, dtype=np.float64)
    return centres


def run(args: argparse.Namespace) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    with only_run(args.output / "items.tsv"):
        scores = read_qualities(args.scores, args.skip_unscored)
        names, quality = list(scores), np.array(list(scores.values()))
        selection = select(quality, identities_of(names, args.scores), args.beta, args.min_images)
        if not selection.identities:
            best = max(selection.counts, key=selection.counts.__getitem__)
            raise ValueError(
                f"no identity has {args.min_images} images of quality {selection.threshold:g} or more; {best} has the "
                f"most, {selection.counts[best]}: lower --min-images or raise --beta"
            )
        embeddings = read_any_embeddings(args.embeddings)
        rows = match_names(names, embeddings.names, str(args.embeddings))
        centres = class_centres(selection, embeddings, args.embeddings, rows)
        items = [
            (name, repr(score), number)
            for name, score, number in zip(names, quality.tolist(), selection.classes.tolist(), strict=True)
            if number >= 0
        ]
        items.sort(key=lambda item: item[2])  # by class; within one in the order of the scores
        with replacing(args.output / "centres.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, identities=np.array(selection.identities), centres=centres)
        write_tsv(args.output / "items.tsv", COLUMNS, items)
    print(
        f"{len(items)} of {len(names)} images, of {len(centres)} of {len(selection.counts)} identities: those with "
        f"{args.min_images} images of quality {selection.threshold:g} or more",
        file=sys.stderr,
    )
    print(args.output)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        "methods.ediffiqa.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    scores_help = "any table of scores or labels, or a pickle of a dict or list of path and score"
    embeddings_help = "of an FR model, by `evaluate.py embed`, or a pickle of a dict of path and array"
    skip_help = "leave out images without a quality (files that could not be read); else they are an error"
    parser.add_argument("--scores", type=Path, required=True, metavar="SCORES", help=scores_help)
    parser.add_argument("--embeddings", type=Path, required=True, metavar="EMBEDDINGS.npz", help=embeddings_help)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the two files go")
    parser.add_argument("--beta", type=share, default=0.2, metavar="X", help="best share of all images (0.2)")
    min_help = "fewest images of high quality of an identity that trains (10)"
    parser.add_argument("--min-images", type=positive, default=10, metavar="N", help=min_help)
    parser.add_argument("--skip-unscored", action="store_true", help=skip_help)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; no unfinished file was written")


if __name__ == "__main__":
    sys.exit(main())
