"""One optimisation step, as every training takes it, and how a training that has diverged ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from model.fast import pick_precision
from training import processes
from training.images import mixed_seed
from training.processes import GradientSums


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to try."""


def arithmetic(precision: str, device: torch.device) -> tuple[torch.dtype, torch.amp.GradScaler]:
    """The type of a network's arithmetic (`--precision`) on this device, and its gradient scaler, which works in fp16
    only."""
    dtype = pick_precision(precision, device)
    return dtype, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def seed_dropout(seed: int, epoch: int, step: int) -> None:
    """Let dropout follow from the seed, the epoch and the step, so that a resumed run repeats it in the middle of an
    epoch too. It differs between processes, whose images differ."""
    torch.manual_seed(mixed_seed((seed, epoch, 2, processes.rank(), step)))


def train_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode. Some batch norms keep their running statistics: with `frozen` all, with `trained` those whose
    weights do not train, with any other rule none."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            module.train(batch_norm != "frozen" and (batch_norm != "trained" or trains))


def backward(
    loss: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    sums: GradientSums,
    first: bool = True,
    last: bool = True,
) -> None:
    """Fresh gradients of the weights of all optimisers, summed over the processes, still times the scaler's factor.

    Where a step adds up several passes, only the `first` begins anew, and only the `last` sums over the processes.
    """
    if first:
        for optimizer in optimizers:
            optimizer.zero_grad()
    sums.adding = not last
    scaler.scale(loss).backward()
    if last:
        sums.finish()


def step(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float, together: bool = False
) -> Tensor:
    """Clip the gradient of each parameter group, or of all groups `together`, to the norm `clip_norm`, and take the
    step. Returns the largest norm before clipping, a scalar on the weights' device. `scaler.update()` belongs behind
    the last step."""
    scaler.unscale_(optimizer)
    groups = [group["params"] for group in optimizer.param_groups]
    if together:
        groups = [[weight for group in groups for weight in group]]
    norms = [clip_gradients(weights, clip_norm) for weights in groups]
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
        f"the training has diverged in {where}: losses {found}; gradient {norm:.4g}. The last saved state is kept: "
        f"try --resume with {advice}; where that diverges at once, begin anew"
    )
