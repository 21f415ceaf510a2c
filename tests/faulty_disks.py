"""The long commands on a disk that is full, and on one that is read-only: `python tests/faulty_disks.py FOLDER`.

Run as root, or by `unshare -rm`. FOLDER holds a folder for each job of benchmarks/kill.py, with `data` and an
undisturbed run in `quiet`. Prints JSON: job -> what was found.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

from long_commands import call  # noqa: E402

from benchmarks import kill  # noqa: E402

SIZES = {"scoring": 24, "labels": 60, "embedding": 60, "label-optimization": 4, "diffiqa": 12}  # kilobytes
STATES = 1.5  # of a training: the first state fits, and a second one beside it does not


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def said(job: kill.Job, folder: Path, *flags: str) -> tuple[int, str]:
    """The exit code and the text on stderr."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        code = call(job, folder, *flags)
    return code, errors.getvalue()


def on_faulty_disks(job: kill.Job, folder: Path) -> dict[str, Any]:
    disk = folder / "disk"
    disk.mkdir()
    size = STATES * (folder / "quiet" / job.state).stat().st_size / 1024 if job.state else SIZES[job.name]
    mount(disk, f"size={size:.0f}k")
    full = said(job, disk)
    there = [name for name in job.results if (disk / name).exists()]
    kept = sum(path.stat().st_size for path in kill.files_of(disk))
    mount(disk, "remount,size=100m")
    again = said(job, disk, *job.resume_flags(disk))
    wrong = kill.differences(job, folder / "quiet", disk)
    mount(disk, "remount,ro")
    return {"full": full, "there": there, "kept": kept, "again": again, "wrong": wrong, "read_only": said(job, disk)}


if __name__ == "__main__":
    print(json.dumps({job.name: on_faulty_disks(job, Path(sys.argv[1]) / job.name) for job in kill.JOBS}))
