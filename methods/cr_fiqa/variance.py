"""IG-FIQA (Kim et al., 2024): anchors of classes with little intra-class variance mislead and should not be taught.

Where all images of an identity are alike, each lies near its centre, and even a bad image gets a high anchor. IG-FIQA
follows the variance of the classes during training and takes such classes out of the quality loss. That idea is the
paper's; what follows is ours. The variance of a class is the moving average of 2 (1 - CCS), the squared distance of a
unit embedding to its centre. A class is out when that is below a share of the mean over the classes seen so far, so
that the bound falls with the variances as the training proceeds.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 0.9  # of the old average when a class is seen again


def update_variance(variance: Tensor, labels: Tensor, ccs: Tensor) -> None:
    """Take the images of a step, their classes (B,) and CCS (B,), into the variances (C,), NaN where unseen."""
    seen, place = labels.unique(return_inverse=True)
    counts = torch.zeros(len(seen), device=ccs.device).index_add_(0, place, torch.ones_like(ccs))
    found = torch.zeros(len(seen), device=ccs.device).index_add_(0, place, 2 * (1 - ccs)) / counts
    before = variance[seen]
    variance[seen] = torch.where(before.isnan(), found, KEPT * before + (1 - KEPT) * found)


def teaches_quality(variance: Tensor, labels: Tensor, floor: float) -> Tensor:
    """1.0 for images (B,) of classes whose variance is `floor` times the mean of all or more, else 0.0."""
    return (variance[labels] >= floor * variance.nanmean()).to(variance.dtype)
