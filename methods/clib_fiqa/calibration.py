"""Confidence calibration of CLIB-FIQA (Ou et al., CVPR 2024): how far an anchor is contradicted by the five factors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from methods.clib_fiqa.losses import SHARPNESS

Confidence = Literal["double-softmax", "js"]


def divergence(quality: Tensor, factor_scores: Tensor, kind: Confidence = "double-softmax") -> Tensor:
    """Divergence d (N,) of the quality distribution (N, 5) from what the MLP reads off the factors (N, 5).

    `quality` holds the model's probabilities, `factor_scores` the MLP's raw outputs.
    `double-softmax` (published code): (KL(M || A) + KL(M || B)) / 2 where M is the mean of A and B, and A and B are
    the softmax of both inputs, so of the probabilities once more; two one-hot distributions are 0.066 apart.
    `js` (paper): the Jensen-Shannon divergence of the probabilities themselves, in [0, ln 2].
    """
    if kind == "js":
        a = quality.clamp_min(torch.finfo(quality.dtype).tiny).log()
    else:
        a = torch.log_softmax(quality, dim=1)
    b = torch.log_softmax(factor_scores, dim=1)
    m = torch.logaddexp(a, b) - math.log(2)  # a, b, m: logarithms of A, B, M, finite even where A or B underflows
    if kind == "js":
        return (a.exp() * (a - m) + b.exp() * (b - m)).sum(dim=1) / 2
    return (m.exp() * (m - (a + b) / 2)).sum(dim=1)


def certainty(divergences: Tensor) -> Tensor:
    """rho = 1 / (1 + exp(32 d)) + 0.5: from 1 where quality and factors agree down to 0.5 where they do not."""
    return torch.sigmoid(-SHARPNESS * divergences) + 0.5
