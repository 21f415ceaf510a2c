"""torch.hub: an entry point of the clone gives a scorer, from any working directory."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, torch
repo, image = sys.argv[1:]
scorer = torch.hub.load(repo, "clib_fiqa", source="local", device="cpu", batch_size=2)
print(type(scorer).__name__, scorer.batch_size, scorer.weights.name)
print(*[f"{score.quality:.4f}" for score in scorer.stream([image] * 3, workers=1)])
"""


def test_hub_gives_a_scorer(tmp_path: Path) -> None:
    from scoring import Scorer

    image = ROOT / "samples" / "astronaut.png"
    call = [sys.executable, "-c", SCRIPT, str(ROOT), str(image)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    scorer, scores = done.stdout.splitlines()
    assert scorer == "Scorer 2 clib_fiqa_tiny.safetensors"
    assert scores.split() == [f"{Scorer('clib-fiqa', device='cpu').score(image).quality:.4f}"] * 3


def test_dependencies_are_importable_names() -> None:
    import hubconf

    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)
