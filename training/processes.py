"""Data-parallel training under torchrun: each process works on its share of every batch, all see the loss of the whole.

The losses of CLIB-FIQA are not means over images (the focal loss bends the mean of the batch), so averaging the
processes' gradients would train something else. Here the processes exchange their predictions and compute the loss of
the whole batch; each sends gradients through its own share, and the sum over the processes is the exact gradient.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from model.device import best_device, pick_device


def start(device: str) -> torch.device:
    """The device of this process; under torchrun (which sets LOCAL_RANK) the process also joins the group."""
    device = best_device() if device == "auto" else device
    if "LOCAL_RANK" in os.environ and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    found = pick_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return found


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes the files and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(rows: Tensor) -> Tensor:
    """This process's part of a batch (B, ...); the parts in the order of the ranks are the batch."""
    return rows.tensor_split(count())[rank()]


def gather(part: Tensor, total: int) -> Tensor:
    """The whole batch (total, ...) from the `share` of each process. Gradients flow into this process's part only."""
    if count() == 1:
        return part
    sizes = [len(rows) for rows in torch.arange(total).tensor_split(count())]
    padded = part.new_zeros(max(sizes), *part.shape[1:])  # all_gather wants equal shapes
    padded[: len(part)] = part.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [whole[:size] for whole, size in zip(parts, sizes, strict=True)]
    parts[rank()] = part
    return torch.cat(parts)


def sum_in_place(tensor: Tensor) -> None:
    """Replace a contiguous tensor by its sum over the processes."""
    if count() > 1:
        dist.all_reduce(tensor)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients by their sums over the processes, in one message."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
