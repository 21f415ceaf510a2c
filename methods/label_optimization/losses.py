"""The loss of the regressor (Babnik, Damer, Štruc, IWBF 2023)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def quality_loss(predicted: Tensor, labels: Tensor) -> Tensor:
    """The mean absolute difference of predictions and labels, both (N,)."""
    return F.l1_loss(predicted, labels)
