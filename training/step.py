"""One optimisation step, as every training takes it, and how a training that has diverged ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from training.processes import GradientSums


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to try."""


def backward(
    loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler, sums: GradientSums
) -> None:
    """Fresh gradients of the weights of all optimisers, summed over the processes, still times the scaler's factor."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    scaler.scale(loss).backward()
    sums.finish()


def step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float) -> Tensor:
    """Clip the gradient of each parameter group to the norm `clip_norm`, take the step, and return the largest norm
    before clipping, a scalar on the weights' device. `scaler.update()` belongs behind the last step."""
    scaler.unscale_(optimizer)
    norms = [clip_gradients(group["params"], clip_norm) for group in optimizer.param_groups]
    scaler.step(optimizer)
    return torch.stack(norms).max()


def clip_gradients(weights: Sequence[Tensor], clip_norm: float) -> Tensor:
    """Clip the gradient of all weights together; its norm, a scalar on their device, which is 0 without gradients."""
    trained = [weight for weight in weights if weight.grad is not None]
    if not trained:
        return torch.zeros((), device=weights[0].device)  # clip_grad_norm_ would make it on the CPU
    return clip_grad_norm_(trained, clip_norm)


def require_finite(
    names: Sequence[str],
    losses: Sequence[float],
    norm: float,
    scaler: torch.amp.GradScaler,
    where: str,
    advice: str,
) -> None:
    """Raise TrainingError when a loss or the gradient's norm is not finite.

    An infinite gradient in fp16 is allowed: the scaler skips the step and lowers its factor. `where` names epoch, step
    and learning rate.
    """
    if all(map(math.isfinite, losses)) and (math.isfinite(norm) or scaler.is_enabled()):
        return
    found = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, losses, strict=False))
    raise TrainingError(
        f"the training has diverged in {where}: losses {found}; gradient {norm:.4g}. Saved states of earlier epochs "
        f"are kept: try --resume with {advice}"
    )
