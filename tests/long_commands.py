"""The commands of benchmarks/kill.py in this process."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from benchmarks import kill


def call(job: kill.Job, folder: Path, *flags: str) -> int:
    """The exit code of the job's command in a folder."""
    first, *rest = job.command
    name = rest.pop(0) if first == "-m" else first.removesuffix(".py")
    before = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = [name, *rest, *flags]
    try:
        return importlib.import_module(name).main()
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
