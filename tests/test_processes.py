"""Two processes train what one would, but for batch statistics, which are each process's own on the CPU."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from training_parts import read_log, run_train, same_tensors, write_faces, write_start

from config_train import TrainConfig
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.loop import batch_losses
from methods.clib_fiqa.run import start_run
from training import processes


def save_gradients(rank: int, count: int, settings: dict, path: str) -> None:
    """The gradients of the first batch, with running statistics in place of the batch's, as process `rank` has them."""
    torch.set_num_threads(1)
    if count > 1:
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29587", "WORLD_SIZE": str(count)}
        os.environ |= rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    run = start_run(TrainConfig(**settings), processes.start("cpu"))
    faces, _ = read_faces(run.config.data_list, run.model.preprocessing)
    batch = next(faces.images.batches(run.config.batch_size, seed=(0,)))
    assert len(batch.images) == len(processes.share(batch.rows))
    batch_losses(run, faces, batch).sum().backward()
    processes.sum_gradients(run.model.parameters())
    named = [*run.model.named_parameters(), *run.mlp.named_parameters()]
    save_file({name: weight.grad.contiguous() for name, weight in named if weight.grad is not None}, f"{path}.{rank}")
    processes.stop()


@pytest.fixture(scope="module")
def settings(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    return {"data_list": str(write_faces(folder, 13)), "clip_model": str(write_start(folder, golden)), "device": "cpu"}


def test_gradients_are_those_of_the_whole_batch(settings, tmp_path):
    """A batch of 13 in shares of 7 and 6, the text tower training too, and a loss that is no mean over images."""
    settings = settings | {"freeze": "none", "batch_size": 13}
    save_gradients(0, 1, settings, str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_gradients, (2, settings, str(tmp_path / "two")), nprocs=2)
    one, first, second = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert same_tensors(first, second)
    assert one.keys() == first.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_torchrun(settings, tmp_path):
    arguments = ["--data-list", settings["data_list"], "--clip-model", settings["clip_model"], "--lr", "1e-4"]
    arguments += ["--epochs", 3, "--calibration-epoch", 2, "--batch-size", 13, "--checkpoints"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = run_train([*arguments, tmp_path / "one"])
    two = run_train([*arguments, tmp_path / "two"], launcher)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    assert [record["epoch"] for record in logs[1]] == [1, 2, 3]
    totals = [[record["total"] for record in log] for log in logs]
    np.testing.assert_allclose(totals[1], totals[0], rtol=0.1)  # the statistics of 7 and 6 images, not of 13
    assert two.stdout.count("clib_fiqa.safetensors") == 1
