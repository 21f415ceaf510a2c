"""Train eDifFIQA's quality MLP alone, on stored embeddings of its frozen backbone.

    python evaluate.py embed FACES --fr BACKBONE --output faces.npz
    python -m recipes.ediffiqa_t.fit_head --backbone BACKBONE --embeddings faces.npz --scores scores.csv \\
        --output ediffiqa.safetensors

The features of a frozen backbone do not change, so no image is read, and the loss of representation consistency
(methods/ediffiqa/losses.py) is zero. What is left is the quality loss: some thousand images take seconds. Every tenth
image is not trained on; the mean error on those is printed, and stored as `validation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from command_line import exit_code, natural, positive
from evaluation.embeddings import read_embeddings
from evaluation.inputs import read_qualities
from evaluation.names import match_names
from methods.ediffiqa.losses import quality_loss
from model.backbones import read_backbone
from model.checkpoint import read_checkpoint, save_checkpoint, sha256_of
from model.ediffiqa import EDifFIQA
from model.files import only_writer
from training.schedule import half_cosine

VALIDATION_EVERY = 10


def fit(network: EDifFIQA, features: Tensor, labels: Tensor, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Train `network.mlp` on features (N, D) and labels (N,), in random batches, along half a cosine of the rate."""
    optimizer = torch.optim.Adam(network.mlp.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(features), (batch_size,), generator=generator)
        optimizer.param_groups[0]["lr"] = lr * half_cosine(1.0, step / steps)
        loss = quality_loss(network.mlp(features[rows])[:, 0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(args: argparse.Namespace) -> int:
    with only_writer(args.output):
        return run_alone(args)


def run_alone(args: argparse.Namespace) -> int:
    """`run`, in the only run that writes this output."""
    scores = read_qualities(args.scores)
    embeddings = read_embeddings(args.embeddings)
    if embeddings.model_sha256 != sha256_of(args.backbone):
        raise ValueError(f"{args.embeddings} was not made by {args.backbone}; make it with `evaluate.py embed`")
    rows = match_names(list(scores), embeddings.names, str(args.embeddings))
    features = torch.from_numpy(np.array(embeddings.rows[rows], np.float32))
    labels = torch.tensor(list(scores.values()), dtype=torch.float32)
    torch.manual_seed(args.seed)
    network = EDifFIQA(read_backbone(*read_checkpoint(args.backbone)), features.shape[1], args.mlp_width)
    held_out = torch.arange(len(labels)) % VALIDATION_EVERY == 0
    fit(network, features[~held_out], labels[~held_out], args.steps, args.batch_size, args.lr, args.seed)
    with torch.no_grad():
        validation = quality_loss(network.mlp(features[held_out])[:, 0], labels[held_out]).item()
    metadata = {
        "system": "ediffiqa",
        "architecture": f"{type(network.base_model).__name__} with a quality MLP",
        "preprocessing": network.preprocessing.to_json(),
        "settings": json.dumps({name: str(value) for name, value in vars(args).items()}),
        "validation": str(validation),
        "backbone_sha256": sha256_of(args.backbone),
        "torch": torch.__version__,
    }
    save_checkpoint(args.output, network.state_dict(), metadata)
    print(f"{args.output}: {int((~held_out).sum())} images train; mean error on the {int(held_out.sum())} others "
          f"{validation:.4f}")  # fmt: skip
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", type=Path, required=True, metavar="FILE", help="the FR model that made the embeddings")
    add("--embeddings", type=Path, required=True, metavar="FILE.npz", help="of `evaluate.py embed`")
    add("--scores", type=Path, required=True, metavar="SCORES", help="labels of these images, in [0, 1]")
    add("--output", type=Path, required=True, metavar="FILE.safetensors", help="the network")
    add("--mlp-width", type=positive, default=1024, metavar="N", help="hidden width of the MLP (1024)")
    add("--steps", type=positive, default=4000, metavar="N", help="(4000)")
    add("--batch-size", type=positive, default=64, metavar="N", help="(64)")
    add("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate (1e-3)")
    add("--seed", type=natural, default=0, metavar="N", help="of new weights and of the batches (0)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
