"""Two processes train what one would, but for batch statistics, which are each process's own on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from test_multi_level import write_start_of_small_tower
from training_parts import join, leave, read_log, run_train, same_tensors, write_faces, write_start

from config_train import TrainConfig
from faces.reader import ImageError, read_image
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.frozen import frozen_levels
from methods.clib_fiqa.loop import batch_losses
from methods.clib_fiqa.run import start_run
from model import load
from model.preprocessing import FACE_PREPROCESSING
from training import processes
from training.images import read_images


def save_gradients(rank: int, count: int, settings: dict, path: str) -> None:
    """The gradients of the first batch, with running statistics in place of the batch's, as process `rank` has them."""
    join(rank, count, Path(f"{path}.store"))
    run = start_run(TrainConfig(**settings), torch.device("cpu"))
    faces, _ = read_faces(run.config.data_list, run.model.preprocessing)
    batch = next(faces.images.batches(run.config.batch_size, seed=(0,)))
    assert len(batch.images) == len(processes.share(batch.rows))
    batch_losses(run, faces, batch).sum().backward()
    run.sums.finish()
    named = [*run.model.named_parameters(), *run.mlp.named_parameters()]
    save_file({name: weight.grad.contiguous() for name, weight in named if weight.grad is not None}, f"{path}.{rank}")
    leave(count)


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


def test_small_buckets_change_nothing(settings, tmp_path, monkeypatch):
    """A message for each weight; some are sent while the backward pass runs, and those without gradients never."""
    monkeypatch.setattr(processes, "BUCKET_BYTES", 1)
    assert len(processes.GradientSums([torch.zeros(2, requires_grad=True) for _ in range(3)]).buckets) == 3
    settings = settings | {"batch_size": 13}
    save_gradients(0, 1, settings, str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_gradients_in_small_messages, (2, settings, str(tmp_path / "two")), nprocs=2)
    one, first, second = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert same_tensors(first, second)
    for name, gradient in one.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def save_gradients_in_small_messages(rank: int, count: int, settings: dict, path: str) -> None:
    processes.BUCKET_BYTES = 1
    save_gradients(rank, count, settings, path)


def save_usable(rank: int, count: int, table: str, path: str) -> None:
    """The rows that train, when each process fails to read another image."""
    join(rank, count, Path(f"{path}.store"))
    lost = Path(table).with_name(f"{rank}.png")

    def read(file: str) -> np.ndarray:
        if Path(file) == lost:
            raise ImageError("unreadable", f"{file} cannot be read")
        return read_image(file)

    for cache in ("yes", "no"):
        paths = [str(Path(table).with_name(f"{index}.png")) for index in range(13)]
        images, bad = read_images(paths, range(13), FACE_PREPROCESSING, cache, 0, read)
        order = torch.cat([batch.rows for batch in images.batches(4, (0,))])
        result = {"usable": images.usable, "bad": torch.tensor(list(bad)), "order": order}
        save_file({key: value.contiguous() for key, value in result.items()}, f"{path}.{cache}.{rank}")
    leave(count)


def test_all_processes_train_on_the_same_images(settings, tmp_path):
    """What one of them cannot read is left out by both; without the cache each reads half of the images."""
    torch.multiprocessing.spawn(save_usable, (2, settings["data_list"], str(tmp_path / "found")), nprocs=2)
    for cache, bad in (("yes", [0, 1]), ("no", [0])):
        first, second = (load_file(tmp_path / f"found.{cache}.{rank}") for rank in (0, 1))
        assert same_tensors(first, second)
        assert first["bad"].tolist() == bad
        assert first["usable"].tolist() == [row for row in range(13) if row not in bad]


def save_levels(rank: int, count: int, folder: str, path: str) -> None:
    """The frozen trunk's features of 12 images, as process `rank` has them."""
    join(rank, count, Path(f"{path}.store"))
    tower = load(Path(folder) / "start.safetensors").clip.visual
    faces, _ = read_faces(Path(folder) / "labels.tsv", tower.preprocessing)
    levels = frozen_levels(tower, faces.images, torch.device("cpu"))
    save_file({"levels": levels}, f"{path}.{rank}")
    leave(count)


def test_processes_share_the_frozen_trunk(tmp_path):
    write_start_of_small_tower(tmp_path)
    write_faces(tmp_path, 7)
    save_levels(0, 1, str(tmp_path), str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_levels, (3, str(tmp_path), str(tmp_path / "many")), nprocs=3)
    one, *many = (load_file(tmp_path / name)["levels"] for name in ("one.0", "many.0", "many.1", "many.2"))
    for levels in many:
        torch.testing.assert_close(levels, one, rtol=1e-4, atol=1e-5)
    assert one.abs().sum(dim=(1, 2)).min() > 0


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


def test_a_process_of_torchrun_ends_without_python_s_shutdown(monkeypatch):
    """In which a thread of gloo that still holds a tensor would abort it."""
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert processes.end(3) == 3
    assert ended == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    processes.end(3)
    assert ended == [3]
