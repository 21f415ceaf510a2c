"""The regressor of quality labels: its network, its parameter groups, and short runs on synthetic pictures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from cr_fiqa_parts import SIZE, tiny_network
from PIL import Image
from recipe_tensors import golden_shapes
from safetensors.torch import load_file, save_file
from training_parts import ROOT, interrupted, join, leave, read_log, same_tensors

from labels.label_table import Label, write_labels
from methods.label_optimization import train as script
from methods.label_optimization.config import Config, parse_arguments
from methods.label_optimization.data import read_scored_faces
from methods.label_optimization.loop import train_epoch_part, train_step, validate
from methods.label_optimization.run import make_network, parameter_groups, start_run
from methods.label_optimization.train import train
from model.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from model.face_trunk import FaceTrunk
from model.iresnet import LAYERS, IResNet
from model.mobilefacenet import FactorNetwork, MobileFaceNetEmbedding, TrunkShape
from model.preprocessing import Preprocessing
from model.regressor import QualityRegressor

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 42


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Grey pictures whose quality is their brightness, in a score table and in a label table; start weights."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines, labels = ["path,status,quality"], []
    (folder / "faces").mkdir()
    for number in range(COUNT):
        level = rng.integers(20, 200)
        noise = rng.integers(0, 30, (SIZE, SIZE, 3))
        Image.fromarray((level + noise).astype(np.uint8)).save(folder / f"faces/{number}.png")
        lines.append(f"{number}.png,ok,{level * 3}")
        labels.append(Label(f"faces/{number}.png", float(level * 3), 0, 0, 0, 0, 0))
    (folder / "scores.csv").write_text("\n".join([*lines, "bad.png,truncated,", ""]))
    write_labels(folder / "labels.tsv", labels)
    torch.save(tiny_network(quality_head=True).state_dict(), folder / "start.pth")
    return folder


def tiny(data: Path, output: Path, **settings: Any) -> Config:
    given = {"labels": str(data / "scores.csv"), "images": str(data / "faces"), "backbone": str(data / "start.pth")}
    given |= {"output": str(output), "batch_size": 10, "num_workers": 0, "device": "cpu", "epochs": 3, "validations": 2}
    return Config(**(given | settings))


def test_learns_and_keeps_the_best(data, tmp_path):
    path = train(tiny(data, tmp_path, epochs=40))
    log = read_log(tmp_path)
    assert len(log) == 80
    assert log[-1]["epoch"] == 40
    assert log[-1]["best"] == min(record["validation"] for record in log) < 0.4 * log[0]["validation"]
    tensors, metadata = read_checkpoint(path)
    assert metadata["system"] == "quality-regressor"
    assert float(metadata["validation"]) == log[-1]["best"]
    network = QualityRegressor.from_tensors(tensors, metadata)
    faces, _ = read_scored_faces(str(data / "scores.csv"), str(data / "faces"), network.preprocessing, cache="yes")
    with torch.no_grad():
        _, quality = network(network.preprocessing.normalise(faces.train.cached))
    assert np.corrcoef(quality[:, 0].numpy(), faces.labels.numpy())[0, 1] > 0.9


def save_run(rank: int, count: int, config: Config, path: str) -> None:
    """The validation loss of the start weights, and the gradients of the first batch, as process `rank` has them."""
    join(rank, count, Path(f"{path}.store"))
    run = start_run(config, torch.device("cpu"), make_network(config))
    faces, _ = read_scored_faces(config.labels, config.images, run.model.preprocessing, validation_every=4)
    assert len(faces.validation.usable) == 11
    found = {"validation": torch.tensor(validate(run, faces))}
    train_step(run, faces, next(faces.train.batches(config.batch_size, (0,), flips=False)))
    weights = run.model.named_parameters()
    found |= {name: weight.grad.contiguous() for name, weight in weights if weight.grad is not None}
    save_file(found, f"{path}.{rank}")
    leave(count)


def test_two_processes_validate_and_step_as_one_does(data, tmp_path):
    """Batches of ten and of one validate, of which the second process has no share. The gradients of all groups are
    clipped together; the network stays in eval mode, as batch statistics would differ."""
    config = tiny(data, tmp_path, clip_norm=0.01)
    save_run(0, 1, config, str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_run, (2, config, str(tmp_path / "two")), nprocs=2)
    one, first, second = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert same_tensors(first, second)
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
    norm = sum(float(tensor.square().sum()) for name, tensor in one.items() if name != "validation") ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_resume_continues_bit_for_bit_in_the_middle_of_an_epoch(data, tmp_path):
    straight = tiny(data, tmp_path / "straight")
    train(straight)
    broken = tiny(data, tmp_path / "broken")
    interrupted(script, broken, after=3)
    assert read_log(tmp_path / "broken")[-1]["epoch"] == 1.5
    assert (tmp_path / "broken/regressor.safetensors").is_file()
    train(replace(broken, resume=True))
    for name in ("state", "regressor"):
        files = [load_file(tmp_path / run / f"{name}.safetensors") for run in ("straight", "broken")]
        assert same_tensors(*files)
    assert len({(tmp_path / run / "regressor.safetensors").read_bytes() for run in ("straight", "broken")}) == 1
    logs = [[record | {"seconds": 0} for record in read_log(tmp_path / run)] for run in ("straight", "broken")]
    assert logs[0] == logs[1]


def test_an_epoch_reads_each_image_once(data, tmp_path):
    """Whatever the number of its parts, when no image is kept in memory."""
    config = tiny(data, tmp_path, validations=4, cache="no")
    run = start_run(config, torch.device("cpu"), make_network(config))
    faces, _ = read_scored_faces(config.labels, config.images, run.model.preprocessing, cache="no")
    original, read = faces.train.read, Counter()
    faces.train.read = lambda path: read.update([path]) or original(path)
    for _ in range(config.validations):
        train_epoch_part(run, faces)
    assert run.step == faces.train.steps(config.batch_size)
    assert read == {faces.train.paths[row]: 1 for row in faces.train.usable.tolist()}


def test_resume_refuses_another_run(data, tmp_path):
    config = tiny(data, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="--resume: there is no"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(ValueError, match=r"begun with --lr 0\.001, not 0\.1"):
        train(replace(config, resume=True, lr=0.1))
    other = tmp_path / "other.csv"
    other.write_text((data / "scores.csv").read_text().replace("1.png,ok,", "1.png,ok,9"))
    with pytest.raises(ValueError, match="the images and labels are not those"):
        train(replace(config, resume=True, labels=str(other)))


def test_published_groups(golden):
    """Of IResNet-100: the names of the first tensors of the groups, their number, rate and decay."""
    with torch.device("meta"):
        model = QualityRegressor(IResNet(LAYERS[100], quality_head=False), 512)
    groups = parameter_groups(model, 1e-3)
    assert [len(group["params"]) for group in groups] == [2, 10, 40, 50]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert [group["weight_decay"] for group in groups] == [1e-4, 1e-5, 1e-6, 1e-6]
    weights = list(model.base_model.parameters())
    assert groups[1]["params"][-1] is weights[-1]
    assert groups[3]["params"][0] is weights[-100]
    own = {key for key in golden_shapes(golden / "iresnet100_qs_keys.json") if not key.startswith("qs.")}
    assert set(model.state_dict()) == {f"base_model.{key}" for key in own} | {"regressor.weight", "regressor.bias"}


def test_only_the_last_tensors_train(data, tmp_path):
    torch.manual_seed(0)
    network = IResNet((2, 4, 8, 2), (16, 16, 16, 16), image_size=SIZE)
    torch.save(network.state_dict(), tmp_path / "deep.pth")
    names = [name for name, _ in network.named_parameters() if not name.startswith("qs.")]
    assert len(names) > 100
    path = train(tiny(data, tmp_path / "run", epochs=1, backbone=str(tmp_path / "deep.pth"), batch_norm="frozen"))
    before, after = network.state_dict(), read_checkpoint(path)[0]
    changed = [name for name in names if not torch.equal(before[name], after[f"base_model.{name}"])]
    assert set(changed) <= set(names[-100:])
    assert {names[-100], names[-60], names[-20], names[-1]} <= set(changed)
    assert torch.equal(before["bn1.running_mean"], after["base_model.bn1.running_mean"])


@pytest.mark.parametrize("kind", ["face-trunk", "mfn", "mobilefacenet"])
def test_other_backbones(data, tmp_path, kind):
    torch.manual_seed(0)
    shape = TrunkShape((16, 16, 16), (1, 1, 1), (16, 16, 16), (16, 16, 16), 16, 32)
    if kind == "mfn":
        start: torch.nn.Module = FactorNetwork(shape, 16)
        preprocessing = Preprocessing(32, (0.4,) * 3, (0.5,) * 3).to_json()
    elif kind == "mobilefacenet":
        start = MobileFaceNetEmbedding(shape, 24, SIZE)
        preprocessing = Preprocessing(SIZE, (0.4,) * 3, (0.5,) * 3).to_json()
    else:
        start = FaceTrunk(16, [(16, 16)] * 15, 32, 24, image_size=SIZE)
        preprocessing = Preprocessing(SIZE, (0.4,) * 3, (0.5,) * 3).to_json()
    metadata = {"system": kind, "preprocessing": preprocessing}
    save_checkpoint(tmp_path / "start.safetensors", start.state_dict(), metadata)
    path = train(tiny(data, tmp_path / "run", backbone=str(tmp_path / "start.safetensors")))
    network = QualityRegressor.from_tensors(*read_checkpoint(path))
    assert network.preprocessing.mean == (0.4, 0.4, 0.4)
    embedding, quality = network(torch.zeros(2, 3, SIZE, SIZE))
    assert embedding.shape == (2, 32 if kind == "mfn" else 24)
    assert quality.shape == (2, 1)


def test_label_tables_know_where_their_images_lie(data, tmp_path):
    own = read_scored_faces(str(data / "labels.tsv"), "", make_network(tiny(data, tmp_path)).preprocessing)[0]
    scores = read_scored_faces(str(data / "scores.csv"), str(data / "faces"), own.train.preprocessing)[0]
    assert own.fingerprint() == scores.fingerprint()
    assert own.validation.usable.tolist() == [0, 20, 40]
    assert torch.equal(own.labels, own.labels.sort().values)
    assert (own.labels[0], own.labels[-1]) == (0, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,quality\n" + "".join(f"{n}.png,0.5\n" for n in range(COUNT)), "qualities that differ"),
        ("path,quality\n0.png,0.5\n", "too few to train on"),
        ("path,quality\n" + "".join(f"no{n}.png,0.{n}\n" for n in range(9)), r"0 of 9 images .*\(missing\)"),
        ("path,quality\n0.png,nan\n", "no image with a quality"),
    ],
)
def test_wrong_tables(data, tmp_path, table, message):
    (tmp_path / "wrong.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        train(tiny(data, tmp_path / "run", labels=str(tmp_path / "wrong.csv")))


def test_wrong_networks_and_settings(data, tmp_path, golden):
    header = tmp_path / "header.pth"
    torch.save({"kernel": torch.zeros(8, 3)}, header)
    with pytest.raises(ValueError, match=r"--backbone .*ArcFaceHeader is no backbone"):
        train(tiny(data, tmp_path / "run", backbone=str(header)))
    with pytest.raises(CheckpointError, match=r"regressor\.weight"):
        QualityRegressor.from_tensors({"base_model.fc.weight": torch.zeros(1)})
    for flag in ("--lr=0", "--batch-size=1", "--validations=0", "--validation-every=1"):
        with pytest.raises(ValueError, match=flag.split("=")[0]):
            parse_arguments(["--labels", "a", "--backbone", "b", "--output", "c", *flag.split("=")])
    with pytest.raises(ValueError, match="--labels must be"):
        parse_arguments(["--backbone", "b", "--output", "c"])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_best(data, tmp_path):
    train(tiny(data, tmp_path, epochs=1))
    best = (tmp_path / "regressor.safetensors").read_bytes()
    command = call(data, tmp_path / "other", "--lr", "1e30")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "regressor.safetensors").read_bytes() == best


def call(data: Path, output: Path, *more: str) -> list[str]:
    settings = ["--labels", str(data / "scores.csv"), "--images", str(data / "faces"), "--backbone"]
    settings += [str(data / "start.pth"), "--output", str(output), "--device", "cpu", "--num-workers", "0"]
    return [sys.executable, "-m", "methods.label_optimization.train", *settings, "--batch-size", "10", *more]


def test_the_command_ctrl_c_and_resume(data, tmp_path):
    command = call(data, tmp_path, "--epochs", "3000")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.safetensors").is_file():
        assert child.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline, "it did not begin to work"
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert "--resume continues" in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    steps = read_log(tmp_path)[-1]["step"]
    more = ["--resume", "--epochs", str(steps // 4 + 1)]
    done = subprocess.run(
        [*call(data, tmp_path), *more], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'regressor.safetensors'}\n"
    log = read_log(tmp_path)
    assert [record["step"] for record in log] == list(range(1, len(log) + 1))
    assert json.loads(read_checkpoint(tmp_path / "regressor.safetensors")[1]["settings"])["batch_size"] == 10
