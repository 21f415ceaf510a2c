"""Weights of the six losses: dynamic weight averaging (Liu et al., CVPR 2019), which CLIB-FIQA inherits from LIQE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

TEMPERATURE = 2.0

Weighting = Literal["dwa", "mean"]


def loss_weights(history: Sequence[Sequence[float]], tasks: int, kind: Weighting = "dwa") -> Tensor:
    """Weights (tasks,) of the losses in the coming epoch, from the epoch means of the losses so far.

    `dwa` (published code): 1 in the first two epochs, then tasks * softmax(r / 2) with r the ratio of the last two
    epochs' means: a loss that falls slowly gets more weight. Epochs count through both stages.
    `mean` (paper, Eq. 5): 1 for the quality loss, which comes first, and the mean over the factors.
    """
    if kind == "mean":
        return torch.tensor([1.0] + [1 / (tasks - 1)] * (tasks - 1))
    if len(history) < 2:
        return torch.ones(tasks)
    last, before = torch.tensor(history[-1], dtype=torch.float64), torch.tensor(history[-2], dtype=torch.float64)
    ratio = last / before.clamp_min(1e-12)  # a loss that has reached 0 must not divide by it
    return (tasks * torch.softmax(ratio / TEMPERATURE, dim=0)).float()
