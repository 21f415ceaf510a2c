"""Items of many requests, put together into batches for one thread that works on them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MEMORY = 0.9  # weight of the past in the mean time of an item


class Full(RuntimeError):
    """There is no place for the items. `retry_after` is the time in seconds after which there may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The batcher has ended."""


class Batcher(Generic[T, R]):
    """Calls `work(items) -> results` in one thread, with at most `size` items at a time.

    A caller first reserves places, of which there are `capacity`, then submits an item for each place, and at last
    releases the places. So the number of items that wait, and the memory that they take, has a bound. A batch is
    started when it is full, when every place that is taken has its item in the batch, or `linger` seconds after its
    first item: a single user never waits for others.
    """

    def __init__(
        self, work: Callable[[list[T]], list[R]], size: int, capacity: int, linger: float = 0.005
    ) -> None:
        self.work, self.size, self.capacity, self.linger = work, size, capacity, linger
        self.taken = 0
        self.seconds_per_item = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[T, Future[R]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether items are still worked on."""
        return self._thread.is_alive() and not self._closed

    def reserve(self, count: int) -> None:
        """Take places. Raises Full when there are too few, ValueError for more places than there are in all."""
        if count > self.capacity:
            raise ValueError(f"{count} items are more than the {self.capacity} that may wait at a time")
        with self._lock:
            if self.taken + count > self.capacity:
                raise Full(max(1, round(self.taken * self.seconds_per_item)))
            self.taken += count

    def release(self, count: int) -> None:
        """Give places back."""
        with self._lock:
            self.taken -= count

    def submit(self, item: T) -> Future[R]:
        """The result of an item, for which a place was reserved. Raises Closed."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise Closed
            self._queue.put((item, future))
        return future

    def close(self) -> None:
        """Finish the items that wait, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ends = [first], False
            deadline = time.monotonic() + self.linger
            while len(batch) < min(self.size, self.taken):
                try:
                    item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if item is None:
                    ends = True
                    break
                batch.append(item)
            self._finish([(item, future) for item, future in batch if future.set_running_or_notify_cancel()])
            if ends:
                return

    def _finish(self, batch: list[tuple[T, Future[R]]]) -> None:
        if not batch:
            return
        start = time.perf_counter()
        try:
            results = self.work([item for item, _ in batch])
        except Exception as error:  # of whatever kind: it belongs to those who wait for the results
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        now = (time.perf_counter() - start) / len(batch)
        self.seconds_per_item = MEMORY * self.seconds_per_item + (1 - MEMORY) * now if self.seconds_per_item else now
