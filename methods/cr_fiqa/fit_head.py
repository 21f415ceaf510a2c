"""Compute a quality head for a finished backbone: the ridge regression of CR-FIQA's anchors on its embeddings.

CR-FIQA (Boutros et al., CVPR 2023) trains the head along with the backbone, against anchors of the header in training.
With a few thousand faces that fails: the header memorises these images, so that their anchors are nearly equal
(docs/anchors.md). Here the anchors are CCS / (NNCCS + 1) against class centres, each centre without the photograph
itself, and the linear head of least squares is computed directly.
Faces whose names hold a `~` are versions of others, such as damaged ones; they are used for the regression, but not for
the class centres.

    python evaluate.py embed FACES --fr runs/cr_fiqa/2384backbone.pth --output runs/cr_fiqa/faces.npz
    python -m methods.cr_fiqa.fit_head runs/cr_fiqa/2384backbone.pth runs/cr_fiqa/faces.npz --output fitted.pth

FACES is a folder with a sub-folder of aligned crops for each identity. The strength of the regression is the one of
the least error on held-out identities.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import torch

from command_line import exit_code, natural
from evaluation.embeddings import read_embeddings
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of, quality_anchor
from methods.cr_fiqa.files import save_tensors
from methods.cr_fiqa.variance import teaches_quality
from model.checkpoint import read_checkpoint, sha256_of
from model.files import only_writer
from model.iresnet import IResNet

FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-5, 1.5, 0.5)  # of the penalty, as a share of the number of faces


def anchors_of(faces: EmbeddedFaces, variance_floor: float) -> tuple[np.ndarray, np.ndarray]:
    """CCS / (NNCCS + 1) (N,) against the centres of the originals, and which faces (N,) teach: those of identities with
    enough variance, the mean over its originals of 2 (1 - CCS), which is the squared distance to the centre."""
    originals = np.array(["~" not in PurePath(path).name for path in faces.paths])
    ccs, nnccs = centre_similarities(faces, faces.where(originals))
    _, own = np.unique([identity_of(path) for path in faces.paths], return_inverse=True)
    variance = np.bincount(own[originals], 2 * (1 - ccs[originals])) / np.bincount(own[originals])
    teaches = teaches_quality(torch.from_numpy(variance), torch.from_numpy(own), variance_floor).bool().numpy()
    return quality_anchor(ccs, nnccs, "shifted"), teaches


def ridge(embeddings: np.ndarray, anchors: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of the linear function of embeddings (N, D) that is nearest to anchors (N,) in the mean
    square, with a penalty of N * strength on the squared weights of standardised embeddings."""
    mean, deviation = embeddings.mean(axis=0), embeddings.std(axis=0).clip(1e-12)
    x, y = (embeddings - mean) / deviation, anchors - anchors.mean()
    weights = np.linalg.solve(x.T @ x + len(x) * strength * np.eye(x.shape[1]), x.T @ y) / deviation
    return weights, anchors.mean() - mean @ weights


def predict_held_out(
    embeddings: np.ndarray, anchors: np.ndarray, identities: Sequence[str], strength: float, seed: int
) -> np.ndarray:
    """Anchors (N,) predicted for each of `FOLDS` parts of the identities from the others."""
    names, own = np.unique(identities, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[own]
    predicted = np.empty(len(anchors))
    for held_out in (fold == index for index in range(FOLDS)):
        weights, bias = ridge(embeddings[~held_out], anchors[~held_out], strength)
        predicted[held_out] = embeddings[held_out] @ weights + bias
    return predicted


def below_common_folder(names: Sequence[str]) -> list[str]:
    """The names relative to the folder that they have in common, so that `a/x/1.jpg` and `b/x/1.jpg` stay two
    identities. Raises ValueError for a mixture of absolute and relative names."""
    folders = {os.path.dirname(os.path.normpath(name)) for name in names}
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        raise ValueError("some names are absolute and some relative, so the identities have no common folder")
    root = os.path.commonpath(folders)
    return [PurePath(os.path.normpath(name)).relative_to(root).as_posix() for name in names]


def run(args: argparse.Namespace) -> int:
    with only_writer(args.output):
        return run_alone(args)


def run_alone(args: argparse.Namespace) -> int:
    """`run`, in the only run that writes this output."""
    tensors, metadata = read_checkpoint(args.backbone)
    given = read_embeddings(args.embeddings)
    if given.model_sha256 not in (None, sha256_of(args.backbone)):
        raise ValueError(f"{args.embeddings} are of another network than {args.backbone}")
    faces = EmbeddedFaces(given.rows, below_common_folder(given.names))
    photos = count_photos(faces.paths)
    if sum(count > 1 for count in photos.values()) < FOLDS:
        raise ValueError(f"{args.embeddings}: at least {FOLDS} identities of two photographs or more were expected")
    faces = faces.where([photos[identity_of(path)] > 1 for path in faces.paths])
    anchors, teaches = anchors_of(faces, args.variance_floor)
    faces, anchors = faces.where(teaches), anchors[teaches]

    embeddings, identities = faces.embeddings.astype(np.float64), [identity_of(path) for path in faces.paths]
    found = (predict_held_out(embeddings, anchors, identities, strength, args.seed) for strength in STRENGTHS)
    errors = [np.square(predicted - anchors).mean() for predicted in found]
    best = int(np.argmin(errors))
    weights, bias = ridge(embeddings, anchors, STRENGTHS[best])
    head = {"qs.weight": torch.from_numpy(weights)[None].float(), "qs.bias": torch.tensor([bias]).float()}
    IResNet.from_tensors(tensors | head, metadata)  # raises CheckpointError for embeddings of another width
    save_tensors(args.output, tensors | head)
    print(
        f"{args.output}: head from {len(anchors)} faces of {len(set(identities))} identities; on held-out identities "
        f"{1 - errors[best] / anchors.var():.2f} of the variance of the anchors explained"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        "methods.cr_fiqa.fit_head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", type=Path, metavar="BACKBONE", help="of train.py, with a quality head or none")
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS.npz", help="its embeddings of faces of identities")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.pth", help="the backbone with its new head")
    floor_help = "leave out identities whose variance is below this share of the mean (IG-FIQA); 0: none (0)"
    parser.add_argument("--variance-floor", type=float, default=0.0, metavar="X", help=floor_help)
    parser.add_argument("--seed", type=natural, default=323, help="of the parts of the identities (323)")
    args = parser.parse_args(arguments)
    if not 0 <= args.variance_floor < 1:
        parser.error(f"--variance-floor {args.variance_floor} must lie in [0, 1)")
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
