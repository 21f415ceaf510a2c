"""CR-FIQA's quality anchor and quality loss (Boutros et al., CVPR 2023, equations 2 to 5), and a teacher's loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from labels.anchors import EPSILON, NNCCS_MIN

Anchor = Literal["shifted", "ratio"]
BETA = 0.5  # where the quality loss turns from quadratic to linear


def quality_anchor(ccs: Tensor, nnccs: Tensor, kind: Anchor = "shifted") -> Tensor:
    """The classifiability of each image (N,): CCS / (NNCCS + 1) as in the paper, or CCS / NNCCS as in the code.

    The paper adds 1e-9 to the divisor of `shifted`, against a division by zero; here the divisor is at least 1e-9. The
    published code's divisor is at least -1e-12, so that its ratio can be ±1e12 with a sign that means nothing; here the
    divisor of `ratio` is at least 1e-3, as when labels are made (labels/anchors.py). Above, both are the same.
    """
    if kind == "shifted":
        return ccs / (nnccs + 1).clamp_min(EPSILON)
    return ccs / nnccs.clamp_min(NNCCS_MIN)


def quality_loss(predicted: Tensor, anchors: Tensor) -> Tensor:
    """Smooth L1 of each image (N,), predicted quality (N,) against anchors (N,), which get no gradient."""
    return F.smooth_l1_loss(predicted, anchors.detach(), beta=BETA, reduction="none")


def teacher_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine of each embedding (N, D) to the teacher's (N, D): (N,) in [0, 2]."""
    return 1 - F.cosine_similarity(embeddings, targets, dim=1)
