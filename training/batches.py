"""Batches on the device: copied ahead, mirrored, normalised and enlarged there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from model.preprocessing import Preprocessing

AnyBatch = TypeVar("AnyBatch", bound=NamedTuple)


def on_device(batches: Iterable[AnyBatch], device: torch.device) -> Iterator[AnyBatch]:
    """The batches, named tuples, with their tensors on the device; on the CPU they are the same objects.

    On CUDA a batch is copied from pinned memory on a stream of its own while the device computes the one before it.
    """
    if device.type == "cpu":
        yield from batches
    elif device.type == "cuda":
        yield from _copied_ahead(batches, device)
    else:
        for batch in batches:
            yield _each_tensor(batch, lambda tensor: tensor.to(device))


def _copied_ahead(batches: Iterable[AnyBatch], device: torch.device) -> Iterator[AnyBatch]:
    stream = torch.cuda.Stream(device)
    waiting: tuple[AnyBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):  # the pinned copies are kept by torch until they have been read
            copied = _each_tensor(batch, lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
            arrived = torch.cuda.Event()
            arrived.record(stream)
        if waiting is not None:
            yield _received(*waiting, device)
        waiting = copied, arrived
    if waiting is not None:
        yield _received(*waiting, device)


def _received(batch: AnyBatch, arrived: torch.cuda.Event, device: torch.device) -> AnyBatch:
    """The batch, which the device's own stream now waits for; the host does not."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(arrived)
    for item in batch:
        if isinstance(item, Tensor):
            item.record_stream(stream)  # its memory must not be used again before this stream is done with it
    return batch


def _each_tensor(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    """The batch with its tensors changed; a number in it stays."""
    changed: list[Any] = [change(item) if isinstance(item, Tensor) else item for item in batch]
    return batch._make(changed)


def mirrored(images: Tensor, flip: Tensor) -> Tensor:
    """Images (N, H, W, 3), those where `flip` (N,) is true mirrored from left to right."""
    return torch.where(flip[:, None, None, None], images.flip(2), images)


def network_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (N, H, W, 3) -> normalised float32 (N, 3, S, S).

    Images of another size (`--cache-size crop`) are enlarged here, bilinear and without rounding to uint8.
    """
    if images.shape[1:3] == (preprocessing.size, preprocessing.size):
        return preprocessing.normalise(images)
    size = (preprocessing.size, preprocessing.size)
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return preprocessing.normalise_pixels(pixels)
