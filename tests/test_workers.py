"""Reading in worker processes: order, equality for any number of workers, bounded memory, and every way to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faces.reader import ImageError, read_image
from faces.workers import AHEAD, CHUNK, Loaded, Readers, load_batches

ROOT = Path(__file__).parents[1]
FACE = str(ROOT / "samples" / "astronaut.png")
ENDLESS = f"""
import itertools, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from faces.workers import load_batches
def prepare(rgb):
    time.sleep(0.02)
    return os.getpid() != MAIN
MAIN = os.getpid()
for batch in load_batches(itertools.repeat({FACE!r}), prepare, 4, 2):
    print(all(item.value for item in batch), flush=True)
"""


AFTER_THREADS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import cv2, numpy, torch
from faces.workers import load_batches
cv2.setNumThreads(4)
torch.set_num_threads(4)
cv2.GaussianBlur(numpy.zeros((4000, 4000, 3), numpy.uint8), (0, 0), 5)
torch.rand(2000, 2000) @ torch.rand(2000, 2000)
def prepare(rgb):
    large = cv2.resize(rgb, (2000, 2000))
    return float(torch.from_numpy(cv2.GaussianBlur(large, (0, 0), 5)).float().sum())
batches = load_batches([{FACE!r}] * 8, prepare, 4, 2)
print(len({{item.value for batch in batches for item in batch}}), cv2.getNumThreads())
"""


def left_half(rgb: np.ndarray) -> np.ndarray:
    if rgb.shape[1] < 8:
        raise ImageError("no_face", "too narrow for one")
    return rgb[:, : rgb.shape[1] // 2].copy()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """23 paths: pictures of growing size, one without a face, one missing, one broken."""
    for number in range(20):
        Image.fromarray(np.full((4, 8 + number, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "01.png").read_bytes()[:50])
    Image.new("RGB", (2, 2)).save(tmp_path / "narrow.png")
    paths = [str(tmp_path / f"{number:02}.png") for number in range(20)]
    paths[5:5] = [str(tmp_path / name) for name in ("narrow.png", "missing.png", "broken.png")]
    return paths


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_order_and_values_for_any_number_of_workers(files: list[str], workers: int, batch_size: int) -> None:
    batches = list(load_batches(iter(files), left_half, batch_size, workers))
    loaded = [item for batch in batches for item in batch]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [item.path for item in loaded] == files
    assert [item.status for item in loaded] == ["ok"] * 5 + ["no_face", "missing", "truncated"] + ["ok"] * 15
    for number, item in enumerate(item for item in loaded if item.status == "ok"):
        np.testing.assert_array_equal(item.value, np.full((4, (8 + number) // 2, 3), number))
    assert all(item.value is None for item in loaded if item.status != "ok")


@pytest.mark.parametrize("workers", [0, 2])
def test_no_paths_no_batches(workers: int) -> None:
    assert list(load_batches([], left_half, 4, workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_paths_are_taken_only_a_little_ahead(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield FACE

    batches = load_batches(endless(), left_half, 8, workers)
    for number, batch in enumerate(islice(batches, 20), 1):
        assert len(batch) == 8
        assert taken <= number * 8 + (AHEAD * workers + 1) * CHUNK


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_state_alone(files: list[str], workers: int) -> None:
    state = torch.get_rng_state()
    list(load_batches(files, left_half, 4, workers))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_prepare_is_not_hidden(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(load_batches([FACE], lambda rgb: 1 // 0, 4, workers))


def test_a_worker_that_dies_ends_the_run_with_a_message() -> None:
    batches = load_batches([FACE] * 100, lambda rgb: os._exit(9), 4, 2)
    with pytest.raises(RuntimeError, match="a worker process that reads images died"):
        next(batches)


def test_what_is_left_unread_leaves_no_process_behind() -> None:
    batches = load_batches([FACE] * 1000, left_half, 4, 2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"True\n", "the work is done in other processes"
    parent.send_signal(how)
    parent.communicate(timeout=60)   # returns when nobody can write to the pipes any more, neither parent nor workers
    assert parent.returncode == -how


def test_workers_start_while_opencv_and_torch_hold_threads() -> None:
    run = subprocess.run([sys.executable, "-c", AFTER_THREADS], capture_output=True, text=True, timeout=120)
    assert run.stdout == "1 4\n", run.stderr


def test_overlapping_streams_give_opencv_its_threads_back() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = (load_batches([FACE] * 20, left_half, 4, 1) for _ in range(2))
        next(first), next(second)
        first.close()
        second.close()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def process_and_picture(rgb: np.ndarray) -> tuple[int, np.ndarray]:
    return os.getpid(), rgb


def test_readers_keep_their_processes(files: list[str]) -> None:
    readers = Readers(process_and_picture, 2)
    try:
        pids = [{item.value[0] for batch in readers.batches([FACE] * 40, 8) for item in batch} for _ in range(2)]
        abandoned = readers.batches([FACE] * 100, 8)
        next(abandoned)
        del abandoned
        values = [item.value for batch in readers.batches(files, 8) for item in batch]
        seen = pids[0] | pids[1] | {value[0] for value in values if value}
        assert len(seen) <= 2  # which of the two read what is chance
        assert [value[1].shape[1] for value in values if value] == [*range(8, 13), 2, *range(13, 28)]
    finally:
        readers.close()
    assert multiprocessing.active_children() == []


def enlarged(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays that fit into the shared memory, those that do not, and one that is not contiguous."""
    return {"small": rgb[:8, :8].copy(), "large": np.tile(rgb, (3, 3, 1)), "mirrored": rgb[:, ::-1]}


def test_arrays_arrive_as_they_were_whatever_their_size() -> None:
    """In two streams at once, of which the second finds no free place in the shared memory."""
    image = read_image(FACE)
    readers = Readers(enlarged, 1)
    try:
        streams = [readers.batches([FACE] * 30, 5) for _ in range(2)]
        for batches in zip(*streams, strict=True):
            for item in (item for batch in batches for item in batch):
                assert item.value is not None
                for name, value in enlarged(image).items():
                    np.testing.assert_array_equal(item.value[name], value)
                item.value["small"][:] = 0   # it is the caller's own
    finally:
        readers.close()


def test_loaded_says_what_happened(files: list[str]) -> None:
    assert next(load_batches([files[6]], left_half, 4, 0)) == [Loaded(files[6], "missing", None)]
