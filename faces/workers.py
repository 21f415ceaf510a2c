"""Reading many images in worker processes, in order, with memory that does not grow with their number."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import torch

from .reader import ImageError, read_image

T = TypeVar("T")
CHUNK = 4    # images a worker takes at a time: few, so that a short list is shared out as well
AHEAD = 4    # chunks waiting or being read, for each worker: this bounds the memory
SHARED_BYTES = 224 * 224 * 3   # of an image: larger results are pickled

_load: Callable[[str], Any]   # set in each worker process, once: it may be large
_shared: Any   # the memory that a worker shares with the main process
_forking = threading.Lock()   # held while OpenCV's number of threads is changed for the sake of a fork


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """`value` is what `prepare` made of the image at `path`, or None where `status` is not "ok"."""

    path: str
    status: str
    value: T | None


def load_batches(
    paths: Iterable[str],
    prepare: Callable[[Any], T],
    batch_size: int,
    workers: int,
    read: Callable[[str], Any] = read_image,
) -> Iterator[list[Loaded[T]]]:
    """Read each path, hand what was read to `prepare`, and give the results in lists of `batch_size`.

    What was read is an RGB uint8 image (H, W, 3), unless `read` is another function.

    The order is that of `paths`, and the results are the same for any number of workers; 0 works in this process. Where
    workers are spawned instead of forked, `prepare` must be picklable: a function of a module, or a partial of one. It
    may raise ImageError, which becomes the status of that image; so may `read`, whose paths need not be files. Raises
    RuntimeError when a worker process dies.
    """
    readers = Readers(prepare, workers, read)
    try:
        yield from readers.batches(paths, batch_size)
    finally:
        readers.close()


def as_it_is(value: Any) -> Any:
    """A `prepare` for what `read` has finished already."""
    return value


class Readers(Generic[T]):
    """`load_batches` with worker processes that stay for the next list of paths."""

    def __init__(
        self, prepare: Callable[[Any], T], workers: int, read: Callable[[str], Any] = read_image
    ) -> None:
        self.load: Callable[[str], T] = partial(read_and_prepare, read, prepare)
        self.workers = workers
        self.pool: _Pool | None = None

    def batches(self, paths: Iterable[str], batch_size: int) -> Iterator[list[Loaded[T]]]:
        """As `load_batches`."""
        chunks = in_lists(paths, min(CHUNK, batch_size))
        loaded = self._in_workers(chunks) if self.workers else map(partial(load_all, self.load), chunks)
        return in_lists(chain.from_iterable(loaded), batch_size)

    def close(self) -> None:
        """End the worker processes. Later batches start new ones."""
        if self.pool is not None:
            self.pool.executor.shutdown(cancel_futures=True)
            self.pool = None

    def _in_workers(self, chunks: Iterator[list[str]]) -> Iterator[list[Loaded[T]]]:
        pending: deque[tuple[int | None, Future[Packed]]] = deque()
        pool = self.pool = self.pool or _Pool(self.load, self.workers)
        try:
            for chunk in chunks:
                pending.append(pool.submit(chunk))
                if len(pending) > AHEAD * self.workers:
                    yield pool.take(*pending.popleft())
            while pending:
                yield pool.take(*pending.popleft())
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError(
                "a worker process that reads images died, perhaps for lack of memory; use fewer workers, "
                "or 0 to see why"
            ) from error
        finally:
            for place, future in pending:   # not all was read
                if not future.cancel():
                    wait([future])   # it writes into its place
                pool.give_back(place)


class _Pool:
    """Worker processes, and the memory in which their arrays come back: a place for each chunk on its way."""

    def __init__(self, load: Callable[[str], Any], workers: int) -> None:
        places = AHEAD * workers + 1
        self.memory = multiprocessing.RawArray("b", places * CHUNK * SHARED_BYTES)
        self.free = deque(range(places))
        self.executor = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(load, self.memory))
        with _forking:   # a forked process would wait for ever for threads of OpenCV that it lacks
            cv2_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
            try:
                self.executor.submit(os.getpid)   # forks all workers
            finally:
                cv2.setNumThreads(cv2_threads)

    def submit(self, paths: list[str]) -> tuple[int | None, Future[Packed]]:
        """The place in the memory, if one is free (another stream of batches may hold them), and the coming result."""
        place = self.free.popleft() if self.free else None
        return place, self.executor.submit(_load_in_worker, paths, place)

    def take(self, place: int | None, future: Future[Packed]) -> list[Loaded[Any]]:
        """Wait for a result, and free its place."""
        try:
            return _unpack(future.result(), self.memory, place)
        finally:
            self.give_back(place)

    def give_back(self, place: int | None) -> None:
        if place is not None:
            self.free.append(place)


class Packed(NamedTuple):
    """A pickled object. Arrays of `sizes` bytes, one behind the other, lie in the shared memory."""

    pickled: bytes
    sizes: list[int]


def _pack(loaded: Any, memory: Any, place: int | None) -> Packed:
    """Pickle an object, its arrays into the given place of the shared memory if they fit there."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(loaded, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = [array.nbytes for array in arrays]
    if place is None or sum(sizes) > CHUNK * SHARED_BYTES:
        return Packed(pickle.dumps(loaded, protocol=5), [])
    start, view = place * CHUNK * SHARED_BYTES, memoryview(memory).cast("B")
    for array, size in zip(arrays, sizes, strict=True):
        view[start : start + size] = array
        start += size
    return Packed(pickled, sizes)


def _unpack(packed: Packed, memory: Any, place: int | None) -> Any:
    """The object that `_pack` packed, with memory of its own."""
    buffers, view = [], memoryview(memory).cast("B")
    start = (place or 0) * CHUNK * SHARED_BYTES
    for size in packed.sizes:
        buffers.append(bytearray(view[start : start + size]))
        start += size
    return pickle.loads(packed.pickled, buffers=buffers)


def _start_worker(load: Callable[[str], Any], memory: Any) -> None:
    global _load, _shared
    _load, _shared = load, memory
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)   # the workers are the parallelism
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches all processes; the main one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)   # which a forked process has from the main one


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)   # a killed parent cannot tell its workers to stop


def _load_in_worker(paths: list[str], place: int | None) -> Packed:
    return _pack(load_all(_load, paths), _shared, place)


def load_all(load: Callable[[str], T], paths: list[str]) -> list[Loaded[T]]:
    """What `load` makes of each path, in this process; an ImageError becomes the status."""
    return [_load_one(load, path) for path in paths]


def _load_one(load: Callable[[str], T], path: str) -> Loaded[T]:
    try:
        return Loaded(path, "ok", load(path))
    except ImageError as error:
        return Loaded(path, error.status, None)


def read_and_prepare(read: Callable[[str], Any], prepare: Callable[[Any], T], path: str) -> T:
    """The picture at a path, read and prepared; a partial of it is what `load_all` and the cluster call."""
    return prepare(read(path))


def in_lists(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time."""
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])
