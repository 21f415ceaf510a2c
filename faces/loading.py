"""Reading many images in worker processes, in order, with memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .reader import ImageError, read_image

T = TypeVar("T")
CHUNK = 4   # images a worker takes at a time: small, so that a short list is shared out as well


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """`value` is what `prepare` made of the image at `path`, or None where `status` is not "ok"."""

    path: str
    status: str
    value: T | None


class _Images(Dataset, Generic[T]):
    """A dataset whose index is the path itself: paths come as the list grows, nothing is kept."""

    def __init__(self, prepare: Callable[[np.ndarray], T]) -> None:
        self.prepare = prepare

    def __getitem__(self, path: str) -> Loaded[T]:
        try:
            return Loaded(path, "ok", self.prepare(read_image(path)))
        except ImageError as error:
            return Loaded(path, error.status, None)


def load_batches(
    paths: Iterable[str], prepare: Callable[[np.ndarray], T], batch_size: int, workers: int
) -> Iterator[list[Loaded[T]]]:
    """Read each path, hand the RGB uint8 (H, W, 3) image to `prepare`, and give the results in lists of `batch_size`.

    The order is that of `paths`, and the results are the same for any number of workers; 0 works in this process. Where
    workers are spawned instead of forked, `prepare` must be picklable: a function of a module, or a partial of one. It
    may raise ImageError, which becomes the status of that image. Raises RuntimeError when a worker process dies.
    """
    loader = DataLoader(
        _Images(prepare),
        batch_sampler=_lists(paths, min(CHUNK, batch_size)),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_use_one_thread,
        generator=torch.Generator(),   # its own, so that loading does not advance the global random state
    )
    return _lists((loaded for chunk in loader for loaded in chunk), batch_size)


def _lists(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def _use_one_thread(_: int) -> None:
    cv2.setNumThreads(1)   # the workers are the parallelism (torch limits its own threads in them)
