"""Measuring in parts: one file per column, the same bytes after any interruption, memory-mapped results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faces.workers import Loaded
from labels import measure as module
from labels.measure import Columns, images_hash, measure, start_parts

NAMES = [f"{index:02}.png" for index in range(23)]
BATCH = 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate(NAMES):
        Image.fromarray(np.full((2, 2, 3), index, np.uint8)).save(folder / name)
    (folder / NAMES[9]).write_text("not a picture")
    return folder


def mean_of(rgb: np.ndarray) -> float:
    return float(rgb.mean())


def describe(loaded: Sequence[Loaded[float]]) -> Columns:
    values = np.array([-1 if item.value is None else item.value for item in loaded])
    return {"status": np.array([item.status for item in loaded]), "values": values[:, None] * [1, 10]}


def stopping_after(batches: int, error: type[BaseException]) -> Callable[[Sequence[Loaded[Any]]], Columns]:
    seen: list[int] = []

    def compute(loaded: Sequence[Loaded[Any]]) -> Columns:
        if len(seen) == batches:
            raise error
        seen.append(len(loaded))
        return describe(loaded)

    return compute


def bytes_of(columns: Columns) -> list[tuple[str, str, bytes]]:
    return [(name, column.dtype.str, column.tobytes()) for name, column in sorted(columns.items())]


def test_the_columns_are_memory_mapped_files(images: Path, tmp_path: Path) -> None:
    columns = measure(images, NAMES, mean_of, describe, tmp_path / "parts", BATCH, 0)
    assert all(isinstance(column, np.memmap) for column in columns.values())
    assert columns["status"].tolist() == ["not_an_image" if index == 9 else "ok" for index in range(23)]
    wanted = [[-1, -10] if index == 9 else [index, 10 * index] for index in range(23)]
    np.testing.assert_array_equal(columns["values"], wanted)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["progress.json", "status.npy", "values.npy"]


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_goes_on_where_it_stopped(
    images: Path, tmp_path: Path, batches: int, error: type[BaseException]
) -> None:
    whole = measure(images, NAMES, mean_of, describe, tmp_path / "whole", BATCH, 0)
    with pytest.raises(error):
        measure(images, NAMES, mean_of, stopping_after(batches, error), tmp_path / "parts", BATCH, 0)
    left = stopping_after(6 - batches, AssertionError)   # 6 batches in all
    resumed = measure(images, NAMES, mean_of, left, tmp_path / "parts", BATCH, 0)
    assert bytes_of(resumed) == bytes_of(whole)
    again = measure(images, NAMES, mean_of, stopping_after(0, AssertionError), tmp_path / "parts", BATCH, 0)
    assert bytes_of(again) == bytes_of(whole)


def test_rows_that_are_not_recorded_are_measured_again(images: Path, tmp_path: Path) -> None:
    """A killed run leaves half a row, or rows that never reached the disk."""
    whole = measure(images, NAMES, mean_of, describe, tmp_path / "whole", BATCH, 0)
    with pytest.raises(KeyboardInterrupt):
        measure(images, NAMES, mean_of, stopping_after(2, KeyboardInterrupt), tmp_path / "parts", BATCH, 0)
    with (tmp_path / "parts" / "values.npy").open("ab") as file:
        file.write(b"half a row")
    with (tmp_path / "parts" / "status.npy").open("ab") as file:
        file.write(bytes(500))
    left = stopping_after(4, AssertionError)
    assert bytes_of(measure(images, NAMES, mean_of, left, tmp_path / "parts", BATCH, 0)) == bytes_of(whole)


def test_files_without_a_record_are_written_anew(images: Path, tmp_path: Path) -> None:
    """Of a run that was killed before its first record, with other columns."""
    parts = tmp_path / "parts"
    parts.mkdir()
    np.save(parts / "values.npy", np.zeros(23))
    np.save(parts / "other.npy", np.zeros(23))
    assert sorted(measure(images, NAMES, mean_of, describe, parts, BATCH, 0)) == ["status", "values"]


def test_a_column_that_is_gone_is_measured_again(images: Path, tmp_path: Path) -> None:
    whole = measure(images, NAMES, mean_of, describe, tmp_path / "parts", BATCH, 0)
    kept = bytes_of(whole)
    (tmp_path / "parts" / "values.npy").unlink()
    assert bytes_of(measure(images, NAMES, mean_of, describe, tmp_path / "parts", BATCH, 0)) == kept


def test_a_killed_process_goes_on(images: Path, tmp_path: Path) -> None:
    whole = measure(images, NAMES, mean_of, describe, tmp_path / "whole", BATCH, 0)
    parts = tmp_path / "parts"
    program = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from labels import measure as module
import test_measure
module.PART_BATCHES = 2
seen = []
def compute(loaded):
    seen.append(1)
    if len(seen) == 4:   # two batches are recorded, the third is written or not
        print("ready", flush=True)
        time.sleep(600)
    return test_measure.describe(loaded)
module.measure(Path({str(images)!r}), test_measure.NAMES, test_measure.mean_of, compute, Path({str(parts)!r}), 4, 0)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=60)
    left = stopping_after(4, AssertionError)
    assert bytes_of(measure(images, NAMES, mean_of, left, parts, BATCH, 0)) == bytes_of(whole)


def test_the_progress_is_recorded_after_some_batches(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    monkeypatch.setattr(module, "PART_BATCHES", 2)
    monkeypatch.setattr(module, "write_json", lambda _, content: recorded.append(content))
    measure(images, NAMES, mean_of, describe, tmp_path / "parts", BATCH, 0)
    assert [progress["rows"] for progress in recorded] == [8, 16, 23, 23]


def test_a_text_that_is_too_long_is_refused(images: Path, tmp_path: Path) -> None:
    def compute(loaded: Sequence[Loaded[Any]]) -> Columns:
        return {"status": np.array(["x" * 17] * len(loaded))}

    with pytest.raises(ValueError, match="more than 16 characters"):
        measure(images, NAMES, mean_of, compute, tmp_path / "parts", BATCH, 0)


def test_resuming_needs_the_same_settings(tmp_path: Path) -> None:
    start_parts(tmp_path / "parts", {"fr": "a", "size": [1, 2]}, resume=False)
    start_parts(tmp_path / "parts", {"fr": "a", "size": (1, 2)}, resume=True)
    with pytest.raises(ValueError, match="cannot resume: fr changed"):
        start_parts(tmp_path / "parts", {"fr": "b", "size": [1, 2]}, resume=True)


def test_the_hash_of_images_notices_changes(images: Path) -> None:
    paths = [images / name for name in NAMES] + [images / "absent.png", "nul\0.png"]
    before = images_hash(paths)
    assert images_hash(paths) == before != images_hash(paths[1:])
    link = images / "link.png"
    link.symlink_to(images / NAMES[0])
    linked = images_hash([link])
    os.utime(images / NAMES[0], (1, 1))   # the same size, another time of change
    assert images_hash(paths) != before
    assert images_hash([link]) != linked


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"rows": "x"}', '{"rows": 3}'])
def test_a_damaged_record_says_what_to_do(images: Path, tmp_path: Path, content: str) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "progress.json").write_text(content)
    with pytest.raises(ValueError, match=r"progress\.json is damaged; run without --resume to start anew"):
        measure(images, NAMES, mean_of, describe, parts, BATCH, 0)
    (parts / "settings.json").write_text(content)
    if content != '{"rows": 3}' and content != '{"rows": "x"}':
        with pytest.raises(ValueError, match=r"settings\.json is damaged; run without --resume to start anew"):
            start_parts(parts, {}, resume=True)
