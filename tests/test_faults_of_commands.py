"""Every command that runs long, and every fault: one clear line, its exit code, and finished work that is kept."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from long_commands import call

import faces.workers
from benchmarks import kill
from evaluation.scores import read_scores
from model.files import only_run

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
JOBS = {job.name: job for job in kill.JOBS}
WORK = {  # what a command calls when a piece of its work is done
    "scoring": ("scoring.tables", "row_of"),
    "labels": ("labels.measure", "_write_rows"),
    "embedding": ("labels.measure", "_write_rows"),
    "clib-fiqa": ("methods.clib_fiqa.loop", "save_state"),
    "cr-fiqa": ("methods.cr_fiqa.loop", "save_state"),
    "label-optimization": ("methods.label_optimization.optimize", "optimise"),
    "diffiqa": ("labels.measure", "_write_rows"),
}
RESUMING = [name for name, job in JOBS.items() if job.resumes]
READING = ["--workers", "1"]
TRAINING = ["--cache", "no", "--num-workers", "1"]
STREAMED = {"clib-fiqa": TRAINING, "cr-fiqa": TRAINING, "scoring": READING, "labels": READING, "embedding": READING}
STREAMED["diffiqa"] = READING


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each job its data, and what an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("jobs")
    for name, job in JOBS.items():
        (folder / name / "quiet").mkdir(parents=True)
        job.make(folder / name / "data")
        for picture in sorted((folder / name / "data" / "faces").rglob("*.png"))[1::2]:
            picture.unlink()   # half of them are enough here
        assert call(job, folder / name / "quiet") in (0, 1)
    return folder


@pytest.fixture
def place(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new folder of the job `name` for a disturbed run, beside its data."""
    name = request.getfixturevalue("name")
    folder = base / name / "run"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def output_of(job: kill.Job) -> str:
    return job.results[0].split("/")[0]


def at_work(patch: pytest.MonkeyPatch, name: str, fault: Callable[[], None], after: int = 3) -> None:
    """Let a fault happen when so many pieces of work are done."""
    module, function = WORK[name]
    work, calls = getattr(importlib.import_module(module), function), []

    def work_and_fail(*arguments: Any, **named: Any) -> Any:
        found = work(*arguments, **named)
        calls.append(1)
        if len(calls) == (1 if name == "label-optimization" else after):
            fault()
        return found

    patch.setattr(f"{module}.{function}", work_and_fail)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop(name: str, folder: Path, *flags: str) -> int:
    """A run that gets SIGTERM in the middle of its work."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            at_work(patch, name, terminate)
            return call(JOBS[name], folder, *flags)
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return (errors.strip().splitlines() or [""])[-1]


def same_as_quiet(name: str, folder: Path) -> list[str]:
    return kill.differences(JOBS[name], folder.with_name("quiet"), folder)


@pytest.mark.parametrize("name", JOBS)
def test_sigterm(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stop(name, place) == 143
    said = last_line(capsys)
    assert said.startswith("stopped")
    assert ("--resume" in said) == JOBS[name].resumes
    assert not any((place / result).exists() for result in JOBS[name].results)
    assert call(JOBS[name], place, *JOBS[name].resume_flags(place)) in (0, 1)
    assert same_as_quiet(name, place) == []


@pytest.mark.parametrize("name", JOBS)
def test_a_second_run(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_run(place / output_of(JOBS[name])):
        assert call(JOBS[name], place) == 2
    assert f"error: another run is writing {output_of(JOBS[name])}" in last_line(capsys)
    assert not any((place / result).exists() for result in JOBS[name].results)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def noisy(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(max(len(content), 100))


def flipped(content: bytes) -> bytes:
    """One bit in the middle."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def without_end(content: bytes) -> bytes:
    return content[:-3]


def without_all(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("name", RESUMING)
def test_a_damaged_state(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file of an interrupted run, cut off, empty, noise or with another bit: an error, or the right result, and
    never another."""
    stop(name, place)
    before = place.with_name("before")
    shutil.copytree(place, before)
    files = [path.relative_to(place) for path in kill.files_of(place) if path.name != "log.jsonl"]
    assert files
    try:
        for file in files:
            for damage in (cut, noisy, flipped, *((without_end, without_all) if file == files[0] else ())):
                shutil.rmtree(place)
                shutil.copytree(before, place)
                (place / file).write_bytes(damage((place / file).read_bytes()))
                capsys.readouterr()
                code = call(JOBS[name], place, "--resume")
                said = last_line(capsys)
                if code == 2:
                    assert said.startswith("error: "), (file, said)
                    assert file.name in said, (file, said)
                    assert "without --resume" in said or "leave --resume out" in said, (file, said)
                else:
                    assert code in (0, 1), (file, code, said)
                    assert same_as_quiet(name, place) == [], (file, damage)
    finally:
        shutil.rmtree(before)


@pytest.mark.parametrize("name", STREAMED)
def test_a_killed_reader(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes that read images are killed when the work has begun."""
    main, load_all = os.getpid(), faces.workers.load_all
    started = place.with_name("started")
    started.unlink(missing_ok=True)

    def load_or_die(*arguments: Any) -> Any:
        if os.getpid() != main and started.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return load_all(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces.workers, "load_all", load_or_die)
        at_work(patch, name, started.touch, after=1)
        assert call(JOBS[name], place, *STREAMED[name]) == 1
    said = last_line(capsys)
    assert said.startswith("error: a worker process that reads images died")
    assert call(JOBS[name], place, *STREAMED[name], *JOBS[name].resume_flags(place)) in (0, 1)
    if STREAMED[name] is READING:
        assert same_as_quiet(name, place) == []


@pytest.mark.parametrize("name", ["labels", "embedding", "diffiqa"])
def test_images_that_vanish_and_change(
    name: str, base: Path, place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two of the last images, while the first are worked on."""
    images = sorted((base / name / "data" / "faces").rglob("*.png"))[-2:]
    kept = [image.read_bytes() for image in images]

    def lose() -> None:
        images[0].unlink()
        images[1].write_bytes(kept[1][:200])

    try:
        with pytest.MonkeyPatch.context() as patch:
            at_work(patch, name, lose, after=1)
            assert call(JOBS[name], place) == 1
    finally:
        for image, content in zip(images, kept, strict=True):
            image.write_bytes(content)
    if name == "diffiqa":
        rows = read_scores(place / "out.csv")
        assert sum(np.isnan(quality) for quality in rows.values()) == 2
    else:
        skipped = (place / f"{output_of(JOBS[name])}.skipped.tsv").read_text()
        assert f"{images[0].name}\tmissing" in skipped
        assert f"{images[1].name}\ttruncated" in skipped
    last_line(capsys)


@pytest.mark.parametrize("name", ["clib-fiqa", "cr-fiqa"])
def test_an_image_that_vanishes_in_a_training(
    name: str, base: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a cache. CR-FIQA takes another image of the batch; CLIB-FIQA ends, and goes on when the image is back."""
    image = sorted((base / name / "data").rglob("*.png"))[-1]
    content = image.read_bytes()
    flags = ["--cache", "no", "--num-workers", "0"]
    try:
        with pytest.MonkeyPatch.context() as patch:
            at_work(patch, name, image.unlink, after=1)
            code = call(JOBS[name], place, *flags)
    finally:
        image.write_bytes(content)
    said = last_line(capsys)
    if name == "cr-fiqa":
        assert code == 0
        log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
        assert log[-1]["replaced"] > 0
        return
    assert code == 1
    assert said.startswith("error: ")
    assert f"{image.name} could be read when the run began: missing now" in said
    assert call(JOBS[name], place, *flags, "--resume") == 0


def test_full_and_read_only_disks(base: Path) -> None:
    """Real ones, of a few kilobytes, for all commands; in a process that may mount them."""
    command = [sys.executable, str(ROOT / "tests" / "faulty_disks.py"), str(base)]
    may_mount = shutil.which("unshare") and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(base / "scoring" / "quiet")], capture_output=True
    )
    if not may_mount or may_mount.returncode:
        pytest.skip("this system does not let us mount a small disk (unshare -rm)")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        for fault, complaint in (("full", "no space left on device"), ("read_only", "read-only file system")):
            code, errors = found[fault]
            assert code == 1, (name, fault, errors)
            assert "Traceback" not in errors
            said = errors.strip().splitlines()[-1]
            assert said.startswith("error: "), (name, said)
            assert complaint in said.lower(), (name, said)
        assert found["there"] == [], name
        assert found["kept"] > 0 or not JOBS[name].resumes, name
        assert found["again"][0] in (0, 1), (name, found["again"])
        assert found["wrong"] == [], name
