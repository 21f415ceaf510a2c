"""Training, scoring and labelling on a real GPU, against the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cr_fiqa_parts import tiny, write_identities
from test_multi_level import write_start_of_small_tower
from training_parts import read_log, write_faces, write_start

import generate_labels
import train
from config_train import TrainConfig
from labels.label_table import read_labels
from methods.cr_fiqa.train import train as train_cr_fiqa
from model import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch finds none"),
]
ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"


@pytest.mark.parametrize("rule", ["text-tower", "published", "none", "trunk"])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_both_stages_of_clib_fiqa(golden: Path, tmp_path: Path, rule: str, precision: str) -> None:
    start = write_start_of_small_tower(tmp_path, factors=True) if rule == "trunk" else write_start(tmp_path, golden)
    table = write_faces(tmp_path, 24)
    settings = {"epochs": 4, "calibration_epoch": 2, "batch_size": 8, "num_workers": 2, "lr": 1e-4}
    config = TrainConfig(data_list=str(table), clip_model=str(start), freeze=rule, **settings)
    totals = {}
    for device, given in (("cpu", "fp32"), ("cuda", precision)):
        folder = tmp_path / device
        train.train(replace(config, device=device, precision=given, checkpoints=str(folder)))
        totals[device] = [record["total"] for record in read_log(folder)]
        assert load(folder / "clib_fiqa.safetensors").clip.visual is not None
    np.testing.assert_allclose(totals["cuda"], totals["cpu"], rtol=0.02 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("settings", [{}, {"batches": "full", "cache": "no"}, {"sample_rate": 0.8}])
def test_an_epoch_of_cr_fiqa(tmp_path: Path, settings: dict) -> None:
    config = tiny(write_identities(tmp_path / "faces"), tmp_path / "run", epochs=1, device="cuda", **settings)
    assert train_cr_fiqa(config).is_file()
    assert np.isfinite(list(read_log(tmp_path / "run")[0]["losses"].values())).all()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.01), ("fp16", 0.005)])
def test_scores_are_those_of_the_cpu(tmp_path: Path, precision: str, tolerance: float) -> None:
    scores = []
    for device, given in (("cpu", "fp32"), ("cuda", precision)):
        output = tmp_path / f"{device}.jsonl"
        command = [sys.executable, ROOT / "inference.py", SAMPLES, "--output", output, "--device", device]
        done = subprocess.run([*command, "--precision", given], capture_output=True, text=True, timeout=280)
        assert output.is_file(), done.stderr
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        scores.append([row["quality"] for row in rows if row["status"] == "ok"])
    assert len(scores[0]) > 2
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=tolerance)


def test_labels_are_those_of_the_cpu(tmp_path: Path) -> None:
    for person in ("a", "b"):
        (tmp_path / "faces" / person).mkdir(parents=True)
    for index, name in enumerate(("astronaut", "astronaut_blurred", "astronaut_occluded", "hopper_dark")):
        shutil.copy(SAMPLES / f"{name}.png", tmp_path / "faces" / "ab"[index % 2] / f"{name}.png")
    anchors = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.tsv"
        arguments = ["--data", tmp_path / "faces", "--output", output, "--device", device, "--min-images", 2]
        assert generate_labels.main([*map(str, arguments), "--workers", "0"]) in (0, 1)
        anchors.append([label.quality for label in read_labels(output) if label.quality is not None])
    assert len(anchors[0]) > 1
    np.testing.assert_allclose(anchors[1], anchors[0], rtol=1e-3)
