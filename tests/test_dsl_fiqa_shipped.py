"""The shipped network of DSL-FIQA: small, the same scores everywhere, and damage lowers them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faces.degradations import PHOTOGRAPHIC, degrade
from faces.listing import list_images
from faces.reader import read_image
from model.weights import find_weights
from scoring import Scorer

ROOT = Path(__file__).parents[1]
GOLDEN = {
    "astronaut.png": 1.0189,
    "astronaut_blurred.png": 0.4528,
    "astronaut_occluded.png": 0.9843,
    "cameraman_turned.png": 0.9430,
    "hopper_dark.png": 0.4321,
    "hopper_tiny.png": 0.4479,
}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer("dsl-fiqa", device="cpu")


def test_it_is_small_and_its_card_says_what_it_learned_from() -> None:
    assert find_weights("dsl-fiqa").stat().st_size < 12_000_000
    first = (ROOT / "docs" / "dsl_fiqa_small.md").read_text(encoding="utf-8").splitlines()[0]
    assert first == "This network learned from synthetic degradations, not from people's opinions."


def test_the_samples_have_the_scores_of_the_day_they_were_measured(scorer: Scorer) -> None:
    found = {path.name: scorer.score(path) for path in list_images(ROOT / "samples")}
    assert {name: score.quality for name, score in found.items()} == pytest.approx(GOLDEN, abs=0.005)
    assert {score.status for score in found.values()} <= {"ok", "no_landmarks"}


@pytest.mark.parametrize("kind", PHOTOGRAPHIC)
def test_a_sample_scores_above_its_damaged_version(scorer: Scorer, kind: str) -> None:
    face = read_image(ROOT / "samples" / "astronaut.png")
    damaged = [degrade(face, kind, strength, np.random.default_rng(0)) for strength in (0.4, 0.9)]
    whole, weak, strong = (score.quality for score in scorer.score([face, *damaged]))
    assert whole > weak > strong


def test_inference_needs_no_weights_named() -> None:
    command = [sys.executable, "inference.py", "samples/astronaut.png", "--method", "dsl-fiqa", "--device", "cpu"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    assert float(printed.stdout.split("quality prediction = ")[1]) == pytest.approx(GOLDEN["astronaut.png"], abs=0.005)
