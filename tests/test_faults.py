"""Disks that fill up, files that vanish or are damaged, processes that are killed: one clear line, and no row lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock  # noqa: F401 (nobody may not import it later)
import numpy as np
import pytest
from PIL import Image

import inference
from benchmarks import kill
from command_line import code_of, message_of
from model.files import only_writer

ROOT = Path(__file__).parents[1]
IMAGES = 24
FLAGS = ["--align", "no", "--device", "cpu", "--batch-size", "2", "--threads", "1"]
RESUME = "the same command with --resume goes on"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with aligned pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{number:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*flags: str, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "inference.py"), "faces", *FLAGS, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, preexec_fn=limit, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and stderr of a process, which has no traceback."""
    errors = process.communicate(timeout=120)[1]
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def test_a_full_disk_keeps_the_finished_rows(folder: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of the journal."""
    code, errors = finish(start("--workers", "0", "--output", "a.jsonl", limit=limit_file_size))
    assert code == 1
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert RESUME in errors
    assert not (folder / "a.jsonl").exists()
    assert inference.main(["faces", *FLAGS, "--workers", "0", "--output", "a.jsonl", "--resume"]) == 0
    assert inference.main(["faces", *FLAGS, "--workers", "0", "--output", "b.jsonl"]) == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_a_folder_without_permission_is_noticed_before_the_work(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "locked").mkdir(mode=0o555)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)   # root may write everywhere, so root becomes nobody for a moment
        with pytest.raises(PermissionError) as caught, only_writer("locked/a.csv"):
            pytest.fail("the work began")
    finally:
        os.seteuid(user)
    assert message_of(caught.value).endswith("locked: permission denied")
    assert code_of(caught.value) == 2


@pytest.mark.parametrize(
    "damage", ["", "not JSON\n", "[1, 2]\n", "{}\n" + "[" * 50_000 + "\n", '{}\n{"path": 3}\n', "\0" * 1000 + "\n"]
)
def test_a_damaged_journal(folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.jsonl.partial").write_text(damage)
    code = inference.main(["faces", *FLAGS, "--workers", "0", "--output", "a.jsonl", "--resume"])
    errors = capsys.readouterr().err
    if damage:
        assert code == 2
        assert errors.startswith("error: ")
        assert "without --resume" in errors
    else:
        assert code == 0, "an empty journal is the beginning of one"


def test_a_picture_that_vanishes_and_one_that_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faces.containers

    read = faces.containers.read_image

    def read_and_remove(path: str, **limits: int) -> np.ndarray:
        if path.endswith("00.png"):
            (folder / "faces" / "07.png").unlink()
            (folder / "faces" / "08.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        return read(path, **limits)

    monkeypatch.setattr(faces.containers, "read_image", read_and_remove)
    assert inference.main(["faces", *FLAGS, "--workers", "0", "--output", "a.jsonl"]) == 1
    statuses = [row["status"] for row in rows(folder / "a.jsonl")]
    assert statuses[7:9] == ["missing", "truncated"]
    assert statuses.count("ok") == IMAGES - 2


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def journal_has(folder: Path, lines: int) -> bool:
    path = folder / "a.jsonl.partial"
    return path.is_file() and path.read_bytes().count(b"\n") >= lines


@pytest.fixture
def endless(folder: Path) -> Path:
    """A list on standard input whose last lines do not come: the run has work in flight until it is stopped."""
    os.mkfifo(folder / "list")
    return folder


@pytest.mark.parametrize("fault", ["SIGTERM", "killed reader", "second run"])
def test_what_happens_to_a_run_in_the_middle(endless: Path, fault: str) -> None:
    command = [sys.executable, str(ROOT / "inference.py"), "@list", *FLAGS, "--workers", "1", "--output", "a.jsonl"]
    script = [argument if argument != "@list" else "-" for argument in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(script, env=environment, text=True, **pipes)
    assert process.stdin is not None
    feeding = threading.Event()

    def feed() -> None:
        assert process.stdin is not None
        number = 0
        while not feeding.is_set() and process.poll() is None:
            try:
                process.stdin.write(f"faces/{number % IMAGES:02}.png\n")
                process.stdin.flush()
            except BrokenPipeError:
                return
            number += 1
            time.sleep(0.002)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        wait_for(lambda: journal_has(endless, 3))
        if fault == "second run":
            code, errors = finish(start("--workers", "0", "--output", "a.jsonl"))
            assert code == 2
            assert "another run is writing a.jsonl" in errors
            process.send_signal(signal.SIGTERM)
        elif fault == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        wait_for(lambda: process.poll() is not None)
    finally:
        feeding.set()
        feeder.join()
        process.stdin = None
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (1 if fault == "killed reader" else 143)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: a worker process" if fault == "killed reader" else "stopped")
    assert RESUME in last
    assert journal_has(endless, 3), "the finished rows are kept"


@pytest.mark.parametrize("name", ["scoring", "cr-fiqa"])
def test_killed_runs_end_as_undisturbed_ones(name: str, tmp_path: Path) -> None:
    """One kill each; benchmarks/kill.py has all jobs, and as many seeds as are asked for."""
    job = next(job for job in kill.JOBS if job.name == name)
    job.make(tmp_path / "data")
    quiet = kill.run_quietly(job, tmp_path / "quiet")
    assert 0 < quiet.first < quiet.seconds
    found = kill.survive(job, tmp_path / "killed", 1, quiet, most_kills=1)
    assert found.wrong == []
