"""Eight epochs of the published training, number for number, under both freezing rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipe_tensors import recipe_tensors
from safetensors.torch import save_file
from training_parts import read_log, run_train

from config_train import TrainConfig
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.loop import calibrate, train_epoch
from methods.clib_fiqa.losses import TASKS
from methods.clib_fiqa.run import start_run
from model.clib_fiqa import expected_quality, marginals

RULES = {"text-tower": "text", "published": "reference"}  # --freeze -> name in the golden file
TOLERANCE = 1e-3  # found: 3e-4 at most, 6e-5 on two threads; Adam's first steps magnify rounding


@pytest.fixture(scope="module")
def starts(golden, tmp_path_factory):
    """The start weights, one file as a state dict and one as safetensors."""
    folder = tmp_path_factory.mktemp("starts")
    torch.save(recipe_tensors(golden / "clip_tiny_keys.json"), folder / "clip.pth")
    save_file(recipe_tensors(golden / "mlp_keys.json"), folder / "mlp.safetensors")
    return {"clip_model": str(folder / "clip.pth"), "mlp": str(folder / "mlp.safetensors")}


def expected(golden, rule):
    with np.load(golden / "trajectory.npz") as file:
        names = ("quality_by_epoch", "losses_by_epoch", "confidence", "lr_by_epoch")
        return [file[f"{RULES[rule]}/{name}"] for name in names]


def losses_of(record):
    """A line of the log as a row of the golden table: stage 2 has no MLP."""
    row = [record["losses"][name] for name in (*TASKS, "mlp")] + [record["total"]]
    return row if row[6] is not None else [*row[:6], row[7], np.nan]


@pytest.mark.parametrize("rule", RULES)
def test_trajectory(golden, starts, rule):
    quality, losses, confidence, lr = expected(golden, rule)
    table = str(golden / "trajectory_labels.tsv")
    config = TrainConfig(data_list=table, epochs=8, lr=1e-4, batch_size=8, freeze=rule, **starts)
    run = start_run(config, torch.device("cpu"))
    faces, _ = read_faces(config.data_list, run.model.preprocessing)
    images = run.model.preprocessing.normalise(faces.images.cached)
    for epoch in range(config.epochs):
        record = train_epoch(run, faces)
        np.testing.assert_allclose(losses_of(record), losses[epoch], rtol=0, atol=TOLERANCE)
        assert record["lr"] == pytest.approx(lr[epoch], abs=1e-12)
        run.model.eval()
        with torch.no_grad():
            predicted = expected_quality(marginals(run.model(images))["quality"])
        np.testing.assert_allclose(predicted, quality[epoch], rtol=0, atol=TOLERANCE)
        if run.epoch == config.calibration_epoch:
            calibrate(run, faces)
            np.testing.assert_allclose(run.divergences, confidence, rtol=0, atol=TOLERANCE / 10)


def test_command_line_gives_the_same(golden, starts, tmp_path):
    """The published rule through train.py and its files."""
    quality, losses, confidence, lr = expected(golden, "published")
    arguments = ["--data-list", golden / "trajectory_labels.tsv", "--checkpoints", tmp_path, "--freeze", "published"]
    arguments += ["--clip-model", starts["clip_model"], "--mlp", starts["mlp"]]
    done = run_train([*arguments, "--epochs", 8, "--calibration-epoch", 5, "--lr", "1e-4", "--batch-size", 8])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "clib_fiqa.safetensors")

    log = read_log(tmp_path)
    np.testing.assert_allclose([losses_of(record) for record in log], losses, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose([record["lr"] for record in log], lr, atol=1e-12)
    assert [record["epoch"] for record in log if "confidence" in record] == [5]
    assert log[4]["confidence"]["divergence_mean"] == pytest.approx(confidence.mean(), abs=1e-5)
    rows = [line.split("\t") for line in (tmp_path / "confidence.tsv").read_text().splitlines()[1:]]
    np.testing.assert_allclose([float(row[1]) for row in rows], confidence, rtol=0, atol=TOLERANCE / 10)

    from model import load

    model = load(tmp_path / "clib_fiqa.safetensors")
    faces, _ = read_faces(golden / "trajectory_labels.tsv", model.preprocessing)
    with torch.no_grad():
        predicted = expected_quality(marginals(model(model.preprocessing.normalise(faces.images.cached)))["quality"])
    np.testing.assert_allclose(predicted, quality[7], rtol=0, atol=TOLERANCE)
