"""torch.hub: an entry point of the clone gives a scorer, from any working directory."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, torch
repo, image, entry = sys.argv[1:]
scorer = torch.hub.load(repo, entry, source="local", device="cpu", batch_size=2)
print(type(scorer).__name__, scorer.batch_size, scorer.weights.name)
print(*[f"{score.quality:.4f}" for score in scorer.stream([image] * 3, workers=1)])
"""
SHIPPED = {
    "clib_fiqa": "clib_fiqa_tiny.safetensors",
    "ediffiqa": "ediffiqa_t.safetensors",
    "dsl_fiqa": "dsl_fiqa_small.safetensors",
}


@pytest.mark.parametrize("entry", SHIPPED)
def test_hub_gives_a_scorer(tmp_path: Path, entry: str) -> None:
    from scoring import Scorer

    image = ROOT / "samples" / "astronaut.png"
    call = [sys.executable, "-c", SCRIPT, str(ROOT), str(image), entry]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    scorer, scores = done.stdout.splitlines()
    assert scorer == f"Scorer 2 {SHIPPED[entry]}"
    assert scores.split() == [f"{Scorer(entry.replace('_', '-'), device='cpu').score(image).quality:.4f}"] * 3


def test_every_argument_of_a_scorer_is_named() -> None:
    import hubconf
    from scoring import Scorer

    *_, sentence = str(hubconf.__doc__).strip().split("\n\n")
    named = re.findall(r"\w+", sentence.partition(":")[2].partition(".")[0])
    assert ["name", *named] == [name for name in inspect.signature(Scorer).parameters if name != "options"]


def test_dependencies_are_importable_names() -> None:
    import hubconf

    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)
