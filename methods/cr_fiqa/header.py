"""ArcFace's loss (Deng et al., CVPR 2019) with CR-FIQA's similarities (Boutros et al., CVPR 2023), lean on memory.

With C classes the header's kernel (D, C) and the cosines (N, C) are what fills the memory. The plain formulation, as
in `model.iresnet.ArcFaceHeader.logits`, holds some six tensors of the size of the cosines and three of the size of
the kernel. Here the forward pass holds one of each, which turn in place from cosines to probabilities to gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 8192  # classes whose centres are worked on together


def arcface_loss(
    embeddings: Tensor, kernel: Tensor, labels: Tensor, s: float = 64.0, m: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of ArcFace's logits, and CCS and NNCCS, which are without gradient; all (N,).

    Embeddings (N, D) of any length, class centres `kernel` (D, C), own classes `labels` int64 (N,). The logit of the
    own class is s * cos(angle + m), without a guard where angle + m exceeds pi, as published. NNCCS is the true one,
    which may be negative; the published code raises it to -1e-12.
    """
    loss, ccs, nnccs = _ArcFaceLoss.apply(embeddings, kernel, labels, s, m)
    return loss, ccs, nnccs


class _ArcFaceLoss(torch.autograd.Function):
    """One buffer (N, C) from the product to the gradient."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, kernel: Tensor, labels: Tensor, s: float, m: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        lengths = _lengths(embeddings, 1)[:, None]
        unit, norms, own = embeddings / lengths, _lengths(kernel, 0), labels[:, None]
        buffer = (unit @ kernel).div_(norms)  # cosines
        ccs = buffer.gather(1, own).clamp_(-1, 1)
        nnccs = buffer.scatter_(1, own, -torch.inf).amax(dim=1, keepdim=True).clamp_(-1, 1)
        # acos has an infinite slope at ±1, which would turn the gradient into NaN.
        angles = ccs.clamp(-1 + 1e-7, 1 - 1e-7).acos()
        margined = (angles + m).cos()
        buffer.scatter_(1, own, margined).mul_(s)  # logits
        highest = s * torch.maximum(nnccs, margined)
        total = buffer.sub_(highest).exp_().sum(dim=1, keepdim=True)
        ctx.probabilities, ctx.s = buffer.div_(total), s
        ctx.save_for_backward(unit, lengths, kernel, norms, own, (angles + m).sin() / angles.sin())
        ctx.mark_non_differentiable(ccs, nnccs)
        loss = total.log() + highest - s * margined
        return loss[:, 0], ccs[:, 0], nnccs[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None, None]:
        unit, lengths, kernel, norms, own, slope = ctx.saved_tensors
        buffer, ctx.probabilities = ctx.probabilities, None
        assert buffer is not None, "the probabilities became the gradient: one backward pass for each forward pass"
        buffer.scatter_(1, own, (buffer.gather(1, own) - 1) * slope)
        buffer.mul_(ctx.s * grad_loss[:, None]).div_(norms)  # gradient of unit @ kernel, but for the norms' part
        grad_unit = buffer @ kernel.t()
        grad_embeddings = (grad_unit - unit * (unit * grad_unit).sum(dim=1, keepdim=True)) / lengths
        grad_centres = buffer.t() @ unit  # (C, D)
        for start in range(0, len(grad_centres), BLOCK):  # what lies along a centre changes its length only
            centres, rows = kernel.t()[start : start + BLOCK], grad_centres[start : start + BLOCK]
            along = (centres * rows).sum(dim=1) / norms[start : start + BLOCK].square()
            rows.addcmul_(centres, along[:, None], value=-1)
        return grad_embeddings, grad_centres.t(), None, None, None


def _lengths(vectors: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=dim).clamp_min(1e-12)  # as F.normalize
