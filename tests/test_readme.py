"""What README.md shows is what happens: its example, and its three commands from a folder of faces to scores."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [text for marked, text in found if marked == language]


def test_the_example_prints_what_the_readme_says() -> None:
    printed = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert f"```\n{printed.stdout}```" in README


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Two people with three variations of a sample each."""
    for name in ("astronaut", "hopper"):
        folder = tmp_path / "faces" / name
        folder.mkdir(parents=True)
        face = np.array(Image.open(ROOT / "samples" / ("astronaut.png" if name == "astronaut" else "hopper_dark.png")))
        for number, changed in enumerate((face, face[:, ::-1], cv2.GaussianBlur(face, (0, 0), 2))):
            Image.fromarray(np.ascontiguousarray(changed)).save(folder / f"{number}.png")
    return tmp_path


def test_from_a_folder_of_faces_to_scores(faces: Path) -> None:
    """The README's lines from generate_labels.py to evaluate.py as they stand, with fewer epochs."""
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("python ")]
    scripts = ["generate_labels.py", "train.py", "inference.py", *["evaluate.py"] * 3]
    assert [command.split()[1] for command in commands] == scripts
    for command in commands:
        words = shlex.split(command)[1:]
        words[0] = str(ROOT / words[0])
        line = " ".join(words).replace("--epochs 8 --calibration-epoch 3", "--epochs 2 --calibration-epoch 1")
        result = subprocess.run([sys.executable, *line.split()], cwd=faces, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    rows = (faces / "runs" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 6
    assert all(row.split(",")[1] == "ok" for row in rows[1:])
    found = json.loads((faces / "runs" / "edc" / "results.json").read_text())["results"]
    assert {row["method"] for row in found} == {"mine"}
    assert (faces / "runs" / "edc" / "report.html").is_file()


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", text, flags=re.MULTILINE))
    command = ["make", "--no-print-directory", "help"]  # without its "Entering directory" lines
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in printed.splitlines()} == targets
    assert {"help", "demo", "test", "lint", "docs-tables"} <= targets
    assert targets <= set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)).split())


def test_links_of_the_docs_lead_somewhere() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md")]
    for page in [*pages, *(ROOT / "docs").glob("*.md"), *ROOT.glob("methods/*/README.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            assert link.startswith("http") or target.exists(), (page, link)


def test_the_index_names_every_page_of_the_docs() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)]+)\)", index))


def test_make_is_there() -> None:
    assert shutil.which("make"), "the README's two commands need make"
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
