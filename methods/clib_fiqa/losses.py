"""The losses of CLIB-FIQA (Ou et al., CVPR 2024), as its published code has them and as its paper prints them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model.clib_fiqa import marginals
from model.preprocessing import constant
from model.prompts import QUALITY_ANCHORS

TASKS = ("quality", "blur", "occlusion", "illumination", "pose", "expression")  # the order of the task weights
SHARPNESS = 32.0  # beta of Eq. 1
FOCUS = 2  # gamma of the focal loss

SoftMapping = Literal["squared", "absolute"]
Emd = Literal["rms", "sum"]
Focal = Literal["batch", "sample"]


def score_to_distribution(scores: Tensor, certainty: Tensor | None = None, mapping: SoftMapping = "squared") -> Tensor:
    """Spread quality scores (N,) in [0, 1] over the five quality levels: (N, 5), rows sum to 1 (Eq. 1).

    p_n ~ exp(-32 rho d(q, a_n)) with the distance squared (published code) or absolute (paper) and the certainty
    rho (N,), in [0.5, 1] after calibration and 1 before it: a doubtful anchor gives a flatter target.
    """
    anchors = constant(QUALITY_ANCHORS, scores.dtype, scores.device)
    distance = (scores[:, None] - anchors).abs()  # (N, 5)
    if mapping == "squared":
        distance = distance.square()
    if certainty is not None:
        distance = distance * certainty[:, None]
    return torch.softmax(-SHARPNESS * distance, dim=1)


def earth_movers_distance(p: Tensor, q: Tensor, kind: Emd = "rms") -> Tensor:
    """Mean distance of the cumulative distributions of p and q, both (N, K), as a scalar (Eq. 4).

    `rms` is the root of the mean square over the levels (published code, as in NIMA), `sum` the sum of the absolute
    differences (paper). Equal distributions have gradient 0, not the NaN of a bare square root.
    """
    difference = p.cumsum(dim=1) - q.cumsum(dim=1)
    if kind == "sum":
        return difference.abs().sum(dim=1).mean()
    return torch.linalg.vector_norm(difference, dim=1).mean() / p.shape[1] ** 0.5


def focal_loss(probabilities: Tensor, labels: Tensor, kind: Focal = "batch") -> Tensor:
    """Focal loss of one factor's distribution (N, K) at labels int64 (N,), as a scalar (Eq. 5).

    `batch` is the published code: the cross-entropy takes the probabilities for logits (a second softmax), and the
    focal factor sees its batch mean, so a perfect prediction still costs something (0.099 of three classes).
    `sample` is the paper: -(1 - p)^2 log p of each image, then the mean.
    """
    if kind == "batch":
        entropy = F.cross_entropy(probabilities, labels)
        return (1 - torch.exp(-entropy)) ** FOCUS * entropy
    p = probabilities.gather(1, labels[:, None]).squeeze(1)
    p = p.clamp_min(torch.finfo(p.dtype).tiny)  # a probability that underflowed to 0 has an infinite logarithm
    return (-((1 - p) ** FOCUS) * p.log()).mean()


def task_losses(
    joint: Tensor,
    target: Tensor,
    labels: Tensor,
    quality_weight: float = 10.0,
    emd: Emd = "rms",
    focal: Focal = "batch",
) -> Tensor:
    """The six losses of a batch, (6,) in the order of `TASKS`, the quality's already times `quality_weight`.

    joint (N, 360) is the model's output, target (N, 5) the anchors' distribution, labels int64 (N, 5) the factor
    labels in the order of `TASKS[1:]`. The focal losses stand unweighted: see methods/clib_fiqa/weighting.py.
    """
    predicted = marginals(joint)
    quality = quality_weight * earth_movers_distance(predicted["quality"], target, emd)
    factors = [focal_loss(predicted[task], labels[:, i], focal) for i, task in enumerate(TASKS[1:])]
    return torch.stack([quality, *factors])
