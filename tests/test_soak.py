"""What benchmarks/soak.py would notice: rows that are lost, doubled or wrong; and its figures."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from benchmarks.soak import Look, Looks, check_table, running, summary


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for number in (0, 1, 3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    return [str(tmp_path / f"{number}.png") for number in range(4)]


def table(folder: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [f"{path},{status},{0.5 if status == 'ok' else ''}\n" for path, status in rows]
    (folder / "scores.csv").write_text("path,status,quality\n" + "".join(lines))
    return folder / "scores.csv"


def test_a_whole_table(tmp_path: Path, paths: list[str]) -> None:
    check_table(table(tmp_path, list(zip(paths, ["ok", "ok", "missing", "ok"], strict=True))), paths)


@pytest.mark.parametrize("order", [[0, 1, 3], [0, 2, 1, 3]], ids=["lost", "moved"])
def test_rows_that_are_lost_or_moved(tmp_path: Path, paths: list[str], order: list[int]) -> None:
    rows = [(paths[row], "missing" if row == 2 else "ok") for row in order]
    with pytest.raises(AssertionError, match="a row is lost, doubled or in another place"):
        check_table(table(tmp_path, rows), paths)


@pytest.mark.parametrize("statuses", [["ok", "ok", "ok", "ok"], ["ok", "missing", "missing", "ok"]])
def test_rows_of_a_wrong_status(tmp_path: Path, paths: list[str], statuses: list[str]) -> None:
    with pytest.raises(AssertionError, match="1 rows have the wrong status"):
        check_table(table(tmp_path, list(zip(paths, statuses, strict=True))), paths)


def test_the_figures(tmp_path: Path) -> None:
    """Ten images a second at 5 ms, then five at 20 ms, with a new start in the middle, which does not count."""
    first = [Look(0, 10.0 * n, 100 * n, 0.5 * n, 300 + n) for n in range(6)]
    second = [Look(1, 100 + 20.0 * n, 500 + 100 * n, 3 + 2.0 * n, 310) for n in range(6)]
    looks = Looks(tmp_path / "looks.jsonl")
    looks.all = [*first, *second]
    images, hours, start, end, start_cost, end_cost, *memory = summary(looks.all, 1000)
    assert (images, hours) == (1000, 200 / 3600)
    assert (start, end) == (10, 5)
    assert (start_cost, end_cost) == pytest.approx((5, 20))
    assert memory[-1] == 310


def test_a_stopped_half_goes_on(tmp_path: Path) -> None:
    (tmp_path / "looks.jsonl").write_text('{"start": 2, "seconds": 7.0, "done": 40, "processor": 1.0, "memory": 9.0}\n')
    looks = Looks(tmp_path / "looks.jsonl")
    assert (looks.start, looks.done) == (2, 40)


def test_what_a_half_has_started_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with open(tmp_path / "errors", "wb") as errors, pytest.raises(SystemExit), running(command, errors) as process:
        sys.exit(143)
    assert process.returncode == -signal.SIGTERM
