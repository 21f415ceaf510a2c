"""Quality anchors from the embeddings of one or more face recognition (FR) models.

Replaces the qualities of a label table. `--anchor mixed` (default) takes two numbers from each model: CCS, the cosine
to the centre of the other photographs of the same person, and the L2 norm of the embedding (its length). CCS measures
what recognition needs, but it depends on the other photographs and is noisy. The length depends on the image alone and
is less noisy. Both are standardised by the mean and standard deviation of the originals (images without `~` in their
names), mixed, and averaged over the models. The normal distribution function maps the result to (0, 1), which bounds
the influence of wrong identities and unusable images. For a face without an identity, CCS is what faces of that length
have on average (linear regression). With `--damage`, darkness lowers an anchor, and a version without damage has the
anchor of its original. Reasons: docs/default_model.md.

    python evaluate.py embed runs/default/faces runs/default/factors --fr FR.onnx --output runs/default/fr.npz
    python -m recipes.default_model.anchors runs/default/known.tsv runs/default/fr.npz --output runs/default/train.tsv

`ratio` and `shifted` are the anchors of generate_labels.py, from one model, with class centres or with its `--header`.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from command_line import exit_code
from evaluation.baselines import lengths
from evaluation.embeddings import read_embeddings
from evaluation.names import match_names
from labels.anchors import EmbeddedFaces, centre_similarities, identity_of, load_header, photo_of, quality_anchor
from labels.label_table import Label, read_labels, write_labels
from model.files import open_text

SPREAD = 2.5  # standard deviations in one unit of the argument of the normal distribution function
DARKNESS = 0.9  # share of the anchor that full darkness takes
ORDINARY = 1.3  # shift in standard deviations, which puts the mean original at 0.7, "good"


def published_anchors(faces: EmbeddedFaces, kind: str, header: Path | None) -> np.ndarray:
    """CCS / NNCCS or CCS / (NNCCS + 1) (N,), as generate_labels.py computes them (labels/anchors.py)."""
    if header is None:
        return quality_anchor(*centre_similarities(faces, faces.where(are_originals(faces))), kind)
    classes = load_header(header, faces.embeddings.shape[1], map(identity_of, faces.paths))
    return quality_anchor(*classes.similarities(faces), kind)


def are_originals(faces: EmbeddedFaces) -> np.ndarray:
    """Which images (N,) are originals, and no damaged versions of others."""
    return np.array(["~" not in path for path in faces.paths])


def mixed_anchors(faces: Sequence[EmbeddedFaces], length_share: float) -> np.ndarray:
    """Quality anchors (N,) in (0, 1). `faces` holds the same N images for each FR model; paths are IDENTITY/IMAGE, or
    IMAGE alone for a face without an identity."""
    originals = are_originals(faces[0])
    known = np.array([identity_of(path) != "" for path in faces[0].paths])
    mixtures = []
    for model in faces:
        certainty = standardised(lengths(model.embeddings), originals & known)
        ccs = np.empty(len(model))
        named = model.where(known)
        similarity, _ = centre_similarities(named, named.where(originals[known]))
        ccs[known] = standardised(similarity, originals[known])
        if not known.all():
            slope, offset = np.polyfit(certainty[known], ccs[known], 1)
            ccs[~known] = slope * certainty[~known] + offset
        mixtures.append((1 - length_share) * ccs + length_share * certainty)
    return torch.special.ndtr(torch.from_numpy((np.mean(mixtures, axis=0) + ORDINARY) / SPREAD)).numpy()


def read_kinds(damage: Path) -> dict[str, str]:
    """Path of a version -> what was done to it, "" for nothing but another alignment, border or colour."""
    with open_text(damage) as file:
        return {row["path"]: row["kinds"] for row in csv.DictReader(file, delimiter="\t")}


def visible_shares(names: Sequence[str], kinds: Mapping[str, str]) -> np.ndarray:
    """What darkness leaves of an anchor (N,): from 1 down to 1 - DARKNESS at full strength.

    FR networks still read a crop that was darkened by arithmetic, whose 8 bits keep what a dark photograph loses."""
    found = [re.search(r"\bdark:([\d.]+)", kinds.get(name, "")) for name in names]
    return np.array([1 - DARKNESS * float(match[1]) if match else 1.0 for match in found])


def of_originals(names: Sequence[str], anchors: np.ndarray, kinds: Mapping[str, str]) -> np.ndarray:
    """The anchors (N,), where a version without damage has that of its original.

    A score should tell how good the photograph is, and not where a detector placed the points of its face. Raises
    ValueError for a version without its original."""
    known = {photo_of(name): row for row, name in enumerate(names) if name not in kinds}
    if alone := [name for name in names if photo_of(name) not in known]:
        raise ValueError(f"{alone[0]}: its original is not in the table")
    rows = [row if kinds.get(name, "damage") else known[photo_of(name)] for row, name in enumerate(names)]
    return anchors[rows]


def standardised(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Standard deviations (N,) from the mean, both over the images where `reference` (N,) is true."""
    return (values - values[reference].mean()) / values[reference].std()


def run(args: argparse.Namespace) -> int:
    labels = read_labels(args.table)
    known = np.array([label.identity is not None for label in labels])
    if not known.any():
        raise ValueError(f"{args.table}: {labels[0].path} has no identity, nor has any other row")
    names = [label.path for label in labels]
    faces = []
    for path in args.embeddings:
        embeddings = read_embeddings(path)
        rows = match_names(names, embeddings.names, str(path))
        faces.append(EmbeddedFaces(embeddings.rows[rows], list(map(own_name, labels))))
    if args.anchor == "mixed":
        anchors = mixed_anchors(faces, args.length_share)
    elif len(faces) == 1:
        anchors = np.full(len(labels), np.nan)  # without an identity there is none
        anchors[known] = published_anchors(faces[0].where(known), args.anchor, args.header)
    else:
        raise ValueError(f"--anchor {args.anchor} is of one FR model; {len(faces)} files of embeddings were given")
    if args.damage:
        kinds = read_kinds(args.damage)
        anchors = of_originals(names, anchors * visible_shares(names, kinds), kinds)
    qualities = [None if np.isnan(anchor) else anchor for anchor in anchors.tolist()]
    write_labels(args.output, (replace(label, quality=q) for label, q in zip(labels, qualities, strict=True)))
    print(f"{args.output}: {len(labels)} rows, anchors from {len(faces)} FR models")
    return 0


def own_name(label: Label) -> str:
    """IDENTITY/IMAGE; without an identity the path as one word, so that photographs of one name stay apart."""
    return f"{label.identity}/{Path(label.path).name}" if label.identity else label.path.replace("/", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("table", type=Path, help="label table with identities, whose qualities are replaced")
    parser.add_argument("embeddings", type=Path, nargs="+", help="of all its images, one file for each FR model")
    parser.add_argument("--output", type=Path, required=True, metavar="LABELS.tsv", help="the table to write")
    parser.add_argument("--anchor", choices=("mixed", "ratio", "shifted"), default="mixed", help="(mixed)")
    damage_help = "damage.tsv: darkness lowers an anchor, and a version without damage has its original's"
    parser.add_argument("--damage", type=Path, metavar="FILE", help=damage_help)
    parser.add_argument("--header", type=Path, metavar="FILE", help="for ratio and shifted: the FR model's header")
    parser.add_argument("--length-share", type=float, default=0.3, metavar="X", help="of the mixture (0.3)")
    args = parser.parse_args(arguments)
    if not 0 <= args.length_share <= 1:
        parser.error(f"--length-share {args.length_share} must lie in [0, 1]")
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
