"""requirements.lock: a version with hashes for everything that the ranges ask for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LINE, HASHES = r"^([A-Za-z0-9._-]+)==([^ ;\\]+)([^\n]*)\n", r"((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
PIN = re.compile(LINE + HASHES, re.MULTILINE)


def wanted() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for name in ("", "-extras", "-service") for line in
             (ROOT / f"requirements{name}.txt").read_text().splitlines()]  # fmt: skip
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_within_its_range() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = {canonical(name): version for name, version, _, _ in PIN.findall(text)}
    assert len(wanted()) > 10
    for requirement in wanted():
        version = pins.get(canonical(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"


def test_every_pin_has_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert len(PIN.findall(text)) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    assert "file://" not in text
    assert "--index-url" not in text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
@pytest.mark.parametrize(
    ("pip_audit", "said"),
    [
        ("#!/bin/sh\necho {} > .venv-supply/audit.json\n", "no known vulnerability"),
        ("#!/bin/sh\necho {} > .venv-supply/audit.json\nexit 1\n", "vulnerable packages are listed"),
        ("#!/bin/sh\necho no network >&2\nexit 1\n", "NOTHING WAS CHECKED"),
    ],
)
def test_the_audit_is_never_green_by_default(pip_audit: str, said: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv-supply" / "bin").mkdir(parents=True)
    fake = tmp_path / ".venv-supply" / "bin" / "pip-audit"
    fake.write_text(pip_audit)
    fake.chmod(0o755)
    command = ["make", "-o", ".venv-supply/stamp", "audit"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    output = (done.stdout + done.stderr).replace(said, said.upper())
    assert [said.upper() in line for line in output.splitlines() if line.startswith("audit: ")] == [True]
    assert (done.returncode == 0) == (said == "no known vulnerability")
