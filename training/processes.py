"""Data-parallel training under torchrun: each process computes a share of every batch, the loss is of the whole batch.

The losses of CLIB-FIQA are not means over images: the focal loss is a non-linear function of the mean over the batch.
The mean of the processes' gradients would therefore be wrong. Here the processes exchange their predictions, and each
computes the loss of the whole batch. Gradients flow through its own share only, so the sum of the gradients over the
processes is the exact gradient.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.device import best_device, pick_device

LONGEST_WAIT = timedelta(hours=1)  # of a process for the others: they may read a large data set at unequal speeds
BUCKET_BYTES = 25_000_000  # gradients that travel together; DistributedDataParallel's default too

Key = TypeVar("Key")


def start(device: str) -> torch.device:
    """The device of this process; under torchrun (which sets LOCAL_RANK) the process also joins the group."""
    device = best_device() if device == "auto" else device
    if "LOCAL_RANK" in os.environ and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    found = pick_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
        torch.backends.cudnn.benchmark = True  # all batches of an epoch have one or two sizes
    if "LOCAL_RANK" in os.environ:
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"  # NCCL takes no tensors of the CPU
        with _stdout_to_stderr():
            dist.init_process_group(backend, timeout=LONGEST_WAIT)
    return found


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """In the block what C++ prints on stdout goes to stderr: gloo of torch 2.10 says there whom it is connected to."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> int:
    """The exit code; under torchrun the process ends here, without Python's own shutdown.

    A thread of gloo may hold a tensor a little longer than the collective lasts. If Python shut down meanwhile, the
    process would abort, and torchrun would report a failure after a training that has succeeded.
    """
    if "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


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


def mean(values: Tensor, device: torch.device, weight: float) -> Tensor:
    """The mean of the vectors (k,) of all processes, in which each counts with its weight.

    They travel from `device`, since NCCL takes no tensors of the CPU.
    """
    if count() == 1:
        return values
    total = torch.cat([values * weight, values.new_tensor([weight])]).to(device)
    sum_in_place(total)
    return total[:-1] / total[-1]


def merge(found: Mapping[Key, Any]) -> dict[Key, Any]:
    """The entries of all processes, the same in each. Where two have the same key, the lower rank's counts."""
    if count() == 1:
        return dict(found)
    every: list[Any] = [None] * count()
    dist.all_gather_object(every, dict(found))
    return {key: value for each in reversed(every) for key, value in each.items()}


class GradientSums:
    """Sums the gradients of some weights over the processes while the backward pass still runs.

    The weights are divided into buckets of `BUCKET_BYTES`, the last layers first, since their gradients come first.
    When a bucket and those before it are complete, one message with its gradients starts in the background. The order
    of the messages is that of the buckets, so it is the same in all processes. `finish` belongs behind every backward
    pass, but for those in which `adding` is set: they only add to the gradients, and nothing is sent. With one process
    nothing happens.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.buckets = _buckets([weight for weight in reversed(list(weights)) if weight.requires_grad])
        self.adding = False
        self.bucket_of = {weight: index for index, bucket in enumerate(self.buckets) for weight in bucket}
        self.spent: list[tuple[list[Tensor], Tensor, Any]] = []
        self._begin()
        if count() > 1:
            for weight in self.bucket_of:
                weight.register_post_accumulate_grad_hook(self._take)

    def finish(self) -> None:
        """Wait until `.grad` of each weight is the sum over the processes. A weight without a gradient, which it then
        lacks in every process, keeps none."""
        if count() > 1:
            while self.started < len(self.buckets):  # those in which a weight had no gradient
                self._start_next()
            for gradients, flat, work in self.messages:
                work.wait()
                _copy_back(gradients, flat)
        # A thread of gloo may hold a message a little longer than `wait`. If Python shut down while that thread had the
        # last reference to a tensor, the process would abort. So messages of a CPU stay until the next `finish`.
        self.spent = [message for message in self.messages if message[1].device.type == "cpu"]
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]  # gradients that have not come yet
        self.started = 0  # buckets whose message is on its way
        self.messages: list[tuple[list[Tensor], Tensor, Any]] = []

    def _take(self, weight: Tensor) -> None:
        if self.adding:
            return
        self.missing[self.bucket_of[weight]] -= 1
        while self.started < len(self.buckets) and not self.missing[self.started]:
            self._start_next()

    def _start_next(self) -> None:
        gradients = [weight.grad for weight in self.buckets[self.started] if weight.grad is not None]
        self.started += 1
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.messages.append((gradients, flat, dist.all_reduce(flat, async_op=True)))


def _copy_back(gradients: Sequence[Tensor], flat: Tensor) -> None:
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _buckets(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """The weights in their order, divided where `BUCKET_BYTES` are full."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for weight in weights:
        size = weight.numel() * weight.element_size()
        if not buckets or filled + size > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(weight)
        filled += size
    return buckets
