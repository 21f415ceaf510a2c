"""Partial FC (An et al., CVPR 2022): a step trains the classes of its batch and a random choice of the millions left.

The centres of the classes left out stay as they are, and so does their momentum. NNCCS is then the similarity to the
nearest centre of the choice, which is lower than to the nearest of all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_classes(labels: Tensor, classes: int, rate: float, generator: torch.Generator) -> Tensor:
    """The classes of a step (k,), ascending: all in `labels`, and others up to `rate` of `classes`."""
    own = labels.unique()
    order = torch.rand(classes, generator=generator).to(labels.device)
    order[own] = 2
    return order.topk(max(len(own), round(rate * classes)), sorted=False).indices.sort().values


@torch.no_grad()
def update_centres(
    centres: Tensor, momenta: Tensor, rows: Tensor, grad: Tensor, lr: float, momentum: float, weight_decay: float
) -> None:
    """A step of SGD, as torch has it, on some rows (k,) of the centres (C, D) and of their momenta (C, D)."""
    step = momenta[rows].mul_(momentum).add_(grad).add_(centres[rows], alpha=weight_decay)
    momenta[rows] = step
    centres.index_add_(0, rows, step, alpha=-lr)
