"""Reading many images in worker processes, in order, with memory that does not grow with their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch

from .reader import ImageError, read_image

T = TypeVar("T")
CHUNK = 4    # images a worker takes at a time: few, so that a short list is shared out as well
AHEAD = 4    # chunks waiting or being read, for each worker: this bounds the memory

_load: Callable[[str], Any]   # set in each worker process, once: it may be large


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """`value` is what `prepare` made of the image at `path`, or None where `status` is not "ok"."""

    path: str
    status: str
    value: T | None


def load_batches(
    paths: Iterable[str],
    prepare: Callable[[np.ndarray], T],
    batch_size: int,
    workers: int,
    read: Callable[[str], np.ndarray] = read_image,
) -> Iterator[list[Loaded[T]]]:
    """Read each path, hand the RGB uint8 (H, W, 3) image to `prepare`, and give the results in lists of `batch_size`.

    The order is that of `paths`, and the results are the same for any number of workers; 0 works in this process. Where
    workers are spawned instead of forked, `prepare` must be picklable: a function of a module, or a partial of one. It
    may raise ImageError, which becomes the status of that image; so may `read`, whose paths need not be files. Raises
    RuntimeError when a worker process dies.
    """
    load = partial(_read_and_prepare, read, prepare)
    chunks = _lists(paths, min(CHUNK, batch_size))
    loaded = _read_in_workers(chunks, load, workers) if workers else map(partial(_load_chunk, load), chunks)
    return _lists(chain.from_iterable(loaded), batch_size)


def _read_in_workers(
    chunks: Iterator[list[str]], load: Callable[[str], T], workers: int
) -> Iterator[list[Loaded[T]]]:
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(load,))
    pending: deque[Future[list[Loaded[T]]]] = deque()
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)   # before the fork: a forked process waits for ever for threads of OpenCV that it lacks
    try:
        for chunk in chunks:
            pending.append(pool.submit(_load_in_worker, chunk))
            if len(pending) > AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process that reads images died, perhaps for lack of memory; use fewer workers, or 0 to see why"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(cv2_threads)


def _start_worker(load: Callable[[str], Any]) -> None:
    global _load
    _load = load
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)   # the workers are the parallelism
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches all processes; the main one ends the others


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)   # a killed parent cannot tell its workers to stop


def _load_in_worker(paths: list[str]) -> list[Loaded[Any]]:
    return _load_chunk(_load, paths)


def _load_chunk(load: Callable[[str], T], paths: list[str]) -> list[Loaded[T]]:
    return [_load_one(load, path) for path in paths]


def _load_one(load: Callable[[str], T], path: str) -> Loaded[T]:
    try:
        return Loaded(path, "ok", load(path))
    except ImageError as error:
        return Loaded(path, error.status, None)


def _read_and_prepare(read: Callable[[str], np.ndarray], prepare: Callable[[np.ndarray], T], path: str) -> T:
    return prepare(read(path))


def _lists(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])
