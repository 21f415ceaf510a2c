"""What is measured of degradation encoders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recipe
from dsl_fiqa_parts import small_encoder
from PIL import Image

from methods.dsl_fiqa.retrieval import probe, probes, retrieval
from model.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]


def test_retrieval_by_hand() -> None:
    angles = np.deg2rad([0, 10, 21, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = np.array([0, 1, 0, 2])  # the last has no other
    found = retrieval(vectors, labels)
    # The first finds the second (wrong), then the third: 1/2. The third finds the second, then the first: 1/2.
    assert found == {"top1": 0.0, "map": pytest.approx(0.5)}
    assert retrieval(vectors, np.array([0, 0, 1, 1])) == {"top1": 0.75, "map": pytest.approx((1 + 1 + 1 / 3 + 1) / 4)}


def test_the_query_does_not_find_itself() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = retrieval(vectors, np.arange(200) % 10)
    assert found["top1"] < 0.2
    assert found["map"] < 0.2


def test_probes_read_what_is_there() -> None:
    rng = np.random.default_rng(0)
    kinds, contents = np.tile(np.arange(3), 40), np.repeat(np.arange(40), 3)
    strengths = rng.random(120)
    features = np.column_stack([np.eye(3)[kinds], strengths, rng.normal(size=(120, 4))])
    found = probes(features, kinds, strengths, contents)
    assert found["kind_accuracy"] == 1
    assert found["strength_srcc"] > 0.98
    nothing = probes(rng.normal(size=(120, 4)), kinds, strengths, contents)
    assert nothing["kind_accuracy"] < 0.6
    assert nothing["strength_srcc"] < 0.5


def test_a_probe_never_sees_the_other_half() -> None:
    rng = np.random.default_rng(0)
    features, targets, train = rng.normal(size=(20, 3)), rng.normal(size=(20, 1)), np.arange(20) < 10
    changed = np.where(train[:, None], targets, 99.0)
    assert np.array_equal(probe(features, targets, train), probe(features, changed, train))


def test_command(tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(recipe.mirror_image(index, 70)).save(tmp_path / f"{index}.png")
    save_checkpoint(tmp_path / "DE.safetensors", small_encoder().state_dict(), {})
    command = [sys.executable, "-m", "methods.dsl_fiqa.retrieval", str(tmp_path), "--size", "64", "--device", "cpu"]
    encoders = ["--encoders", str(tmp_path / "DE.safetensors"), "untrained"]
    result = subprocess.run([*command, *encoders], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["encoders"]
    assert list(found) == encoders[1:]
    assert found["untrained"].keys() == {"top1", "map", "content_top1", "kind_accuracy", "strength_srcc"}
    command += ["--encoders", "untrained"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "needs a file" in result.stderr
