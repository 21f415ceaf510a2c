"""A folder has the same rows from inference.py, from the service and from an exported bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[1]


def test_one_folder_three_ways(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = tmp_path / "photographs"
    (folder / "crops").mkdir(parents=True)
    for name in ("astronaut.png", "hopper_dark.png"):
        shutil.copy(ROOT / "samples" / name, folder / "crops")
    photograph = ImageOps.expand(Image.open(ROOT / "samples" / "astronaut.png").resize((300, 300)), 90, "grey")
    photograph.save(folder / "photograph.jpg")
    Image.new("RGB", (200, 300), "green").save(folder / "faceless.png")
    (folder / "broken.jpg").write_bytes((folder / "photograph.jpg").read_bytes()[:2000])
    command = [sys.executable, "benchmarks/same_scores.py", str(folder), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| the service | 5 | 3 | 0 |" in done.stdout
    assert "| the bundle, on crops of faces.align | 5 | 3 | 0 |" in done.stdout
