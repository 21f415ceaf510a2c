"""Micro-batches of the service: every item gets its result, memory is bounded, and nobody waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import chain

import pytest

from service.batching import Batcher, Closed, Full


class Work:
    """Doubles numbers, one batch at a time, each when it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.started.set()
        assert self.go.wait(10)
        if 13 in items:
            raise RuntimeError("thirteen")
        return [2 * item for item in items]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def batcher(work: Work) -> Iterator[Batcher[int, int]]:
    made: Batcher[int, int] = Batcher(work, size=4, capacity=10, linger=0.5)
    yield made
    work.go.set()
    made.close()


def test_items_that_wait_become_batches(batcher: Batcher[int, int], work: Work) -> None:
    batcher.reserve(1)
    first = batcher.submit(0)
    assert work.started.wait(10), "alone, so it is not kept waiting for others"
    batcher.reserve(6)
    futures = [batcher.submit(i) for i in range(1, 7)]
    work.go.set()
    assert [future.result(10) for future in [first, *futures]] == [0, 2, 4, 6, 8, 10, 12]
    assert [len(batch) for batch in work.batches] == [1, 4, 2]
    assert batcher.seconds_per_item > 0


def test_many_threads_get_their_own_results(batcher: Batcher[int, int], work: Work) -> None:
    work.go.set()

    def one(i: int) -> int:
        while True:
            try:
                batcher.reserve(1)
            except Full:
                continue
            try:
                return batcher.submit(i).result(10)
            finally:
                batcher.release(1)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(100, 400))) == [2 * i for i in range(100, 400)]
    assert batcher.taken == 0
    assert sorted(chain(*work.batches)) == list(range(100, 400))


def test_places_are_bounded(batcher: Batcher[int, int]) -> None:
    batcher.reserve(8)
    with pytest.raises(Full) as full:
        batcher.reserve(3)
    assert full.value.retry_after >= 1
    batcher.reserve(2)
    batcher.release(10)
    with pytest.raises(ValueError, match="11 items are more than the 10"):
        batcher.reserve(11)


def test_an_error_reaches_those_who_wait_and_nobody_else(batcher: Batcher[int, int], work: Work) -> None:
    work.go.set()
    batcher.reserve(1)
    with pytest.raises(RuntimeError, match="thirteen"):
        batcher.submit(13).result(10)
    assert batcher.submit(1).result(10) == 2


def test_a_cancelled_item_is_not_worked_on(batcher: Batcher[int, int], work: Work) -> None:
    batcher.reserve(3)
    first = batcher.submit(0)
    work.started.wait(10)
    cancelled, last = batcher.submit(1), batcher.submit(2)
    assert cancelled.cancel()
    work.go.set()
    assert (first.result(10), last.result(10)) == (0, 4)
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert 1 not in list(chain(*work.batches))


def test_closing_finishes_what_waits(work: Work) -> None:
    batcher: Batcher[int, int] = Batcher(work, size=2, capacity=10)
    batcher.reserve(5)
    futures = [batcher.submit(i) for i in range(5)]
    work.go.set()
    batcher.close()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
    assert not batcher.is_alive
    with pytest.raises(Closed):
        batcher.submit(1)
