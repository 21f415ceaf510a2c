"""The shipped eDifFIQA-T: found without --weights, small, and with the scores of the samples that it was made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faces.degradations import degrade
from faces.reader import read_image
from model import load
from model.checkpoint import sha256_of
from model.ediffiqa import EDifFIQA
from model.face_trunk import FaceTrunk
from model.weights import WEIGHTS, find_weights
from scoring import Scorer

SAMPLES = Path(__file__).parents[1] / "samples"
SCORES = {
    "astronaut.png": 0.52817,
    "astronaut_blurred.png": 0.15098,
    "astronaut_occluded.png": 0.21910,
    "cameraman_turned.png": 0.20689,
    "hopper_dark.png": 0.39326,
    "hopper_tiny.png": 0.21909,
}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer("ediffiqa", device="cpu", precision="fp32")


def test_the_file_is_the_known_one() -> None:
    known = next(known for known in WEIGHTS if known.name == "ediffiqa")
    file = find_weights("ediffiqa")
    assert sha256_of(file) == known.sha256
    assert file.stat().st_size <= 8 * MEGABYTE
    network = load("ediffiqa")
    assert isinstance(network, EDifFIQA)
    assert isinstance(network.base_model, FaceTrunk)
    assert network.preprocessing.size == known.image_size


def test_scores_of_the_samples(scorer: Scorer) -> None:
    scores = scorer.score([SAMPLES / name for name in SCORES])
    assert [score.status for score in scores] == ["ok"] * len(SCORES)
    assert [score.quality for score in scores] == pytest.approx(list(SCORES.values()), abs=1e-4)


def test_damage_lowers_the_score(scorer: Scorer) -> None:
    image = read_image(SAMPLES / "astronaut.png")
    kinds = ("gaussian_blur", "low_resolution", "noise", "mask")
    damaged = [degrade(image, kind, 0.75, np.random.default_rng(0)) for kind in kinds]
    clean, *others = (score.quality for score in scorer.score([image, *damaged]))
    assert clean is not None
    assert all(other is not None and other < clean for other in others)
