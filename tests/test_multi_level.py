"""The image tower that reads all levels of a trunk, and training it without running the trunk in every epoch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import recipe
import torch
from safetensors.torch import load_file, save_file
from training_parts import same_tensors, write_faces

import train
from config_train import TrainConfig
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.frozen import frozen_levels, tower_of
from methods.clib_fiqa.loop import calibrate, image_features
from methods.clib_fiqa.run import start_run
from model import load
from model.clib_fiqa import ClibFiqa
from model.clip import CLIP, TextShape
from model.face_trunk import FaceTrunk
from model.fast import FusedConv, accelerate
from model.mobilefacenet import MobileFaceNet, TrunkShape
from model.multi_level import MultiLevelTower
from model.preprocessing import FACE_PREPROCESSING


def small_tower(factors: bool = False) -> MultiLevelTower:
    """A narrow one, with the running statistics of a trained trunk."""
    torch.manual_seed(0)
    trunk = FaceTrunk(stem=16, blocks=[(16, 16)] * 5 + [(24, 20)] * 7 + [(24, 24)] * 3, last=32, output_dim=8)
    shape = TrunkShape((16, 20, 24), (1, 2, 1), (16, 24, 24), (24, 24, 24), stem=16, last=28)
    factor_trunk = MobileFaceNet(shape) if factors else None
    tower = MultiLevelTower(trunk, hidden=16, output_dim=12, factor_trunk=factor_trunk)
    tower.train()
    for _ in range(3):
        tower(torch.randn(8, 3, 112, 112))
    return tower.eval()


def faces(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(recipe.mirror_image(seed, 112)) for seed in range(count)])


def write_start_of_small_tower(folder: Path, factors: bool = False) -> Path:
    clip = CLIP(small_tower(factors), TextShape(width=16, layers=1, heads=1))
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "start.safetensors")
    return folder / "start.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["one trunk", "two trunks"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start_of_small_tower(tmp_path_factory.mktemp("start"), request.param)


@pytest.fixture
def config(start: Path, tmp_path: Path) -> TrainConfig:
    table = write_faces(tmp_path, 12)
    folders = {"data_list": str(table), "clip_model": str(start), "checkpoints": str(tmp_path / "run")}
    return TrainConfig(**folders, epochs=2, calibration_epoch=1, batch_size=4, num_workers=0, lr=1e-2, freeze="trunk")


@torch.no_grad()
def test_levels_are_means_spreads_embedding_and_its_length() -> None:
    tower = small_tower()
    images = tower.preprocessing.normalise(faces(3))
    levels, embedding = tower.levels(images), tower.trunk(images)
    assert levels.shape == (3, tower.width) == (3, 2 * (16 + 20 + 24 + 32) + 8 + 1)
    torch.testing.assert_close(levels[:, -9:-1], embedding)
    torch.testing.assert_close(levels[:, -1], embedding.norm(dim=1).log())
    first, *_, last = tower.trunk.maps(images)
    assert first.shape == (3, 16, 28, 28)
    assert last.shape == (3, 32, 7, 7)
    torch.testing.assert_close(levels[:, :16], first.mean(dim=(2, 3)))
    torch.testing.assert_close(levels[:, 16:32], first.std(dim=(2, 3), correction=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(levels[:, -73:-41], last.mean(dim=(2, 3)))


@torch.no_grad()
def test_the_levels_of_the_factor_trunk_come_last() -> None:
    """It sees the images as an MFN does, whatever the other trunk expects."""
    tower = small_tower(factors=True)
    assert tower.factor_trunk is not None
    images = faces(3)
    levels = tower.levels(tower.preprocessing.normalise(images))
    maps = tower.factor_trunk.maps(FACE_PREPROCESSING.normalise(images))
    assert [m.shape[1] for m in maps] == [16, 20, 24, 28] == list(tower.factor_trunk.map_channels)
    expected = torch.cat([f(m) for m in maps for f in (_mean, _spread)], dim=1)
    assert levels.shape == (3, tower.width)
    torch.testing.assert_close(levels[:, -expected.shape[1] :], expected, rtol=1e-3, atol=1e-4)
    one = small_tower()
    assert tower.width == one.width + expected.shape[1]


def _mean(level: torch.Tensor) -> torch.Tensor:
    return level.mean(dim=(2, 3))


def _spread(level: torch.Tensor) -> torch.Tensor:
    return level.std(dim=(2, 3), correction=0)


@torch.no_grad()
def test_loads_from_its_tensors_and_runs_fast(start: Path) -> None:
    network = load(start)
    assert isinstance(network, ClibFiqa)
    assert isinstance(network.clip.visual, MultiLevelTower)
    assert network.preprocessing.size == 112
    images = network.preprocessing.normalise(faces(4))
    expected = network.clip.visual(images)
    fast = accelerate(network.clip.visual, torch.float32, torch.device("cpu"))
    found = fast(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stored_levels_give_the_features_of_the_images(config: TrainConfig) -> None:
    run = start_run(config, torch.device("cpu"))
    table, _ = read_faces(config.data_list, run.model.preprocessing)
    run.model.eval()
    batch = next(iter(table.images.batches(8, seed=(5,))))
    assert batch.flip.any()
    assert not batch.flip.all()
    pictures = torch.where(batch.flip[:, None, None, None], batch.images.flip(2), batch.images)
    expected = run.model.clip.encode_image(run.model.preprocessing.normalise(pictures))
    table.images.cached = frozen_levels(tower_of(run.model), table.images, run.device)
    again = next(iter(table.images.batches(8, seed=(5,))))
    torch.testing.assert_close(image_features(run, again), expected, rtol=1e-4, atol=1e-4)


def test_training_leaves_the_trunk_as_it_was(config: TrainConfig, start: Path) -> None:
    train.train(config)
    before, after = load_file(start), load_file(f"{config.checkpoints}/clib_fiqa.safetensors")
    trunk = {key: value for key, value in before.items() if key.startswith(("visual.trunk.", "visual.factor_trunk."))}
    assert trunk
    assert same_tensors(trunk, {key: after[key] for key in trunk})
    for key in ("visual.hidden.weight", "visual.project.weight", "visual.standardise.running_mean", "ln_final.weight"):
        assert not torch.equal(before[key], after[key]), key


def test_resume_continues_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    """With dropout, whose random numbers follow from seed and epoch."""
    straight = replace(config, epochs=3, dropout=0.3, lr_period=5, checkpoints=str(tmp_path / "straight"))
    train.train(straight)
    broken = replace(straight, checkpoints=str(tmp_path / "broken"))
    train.train(replace(broken, epochs=2))
    train.train(replace(broken, resume=True))
    a, b = (load_file(tmp_path / run / "clib_fiqa.safetensors") for run in ("straight", "broken"))
    assert same_tensors(a, b)


def test_another_tower_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    clip = CLIP(small_tower().trunk, TextShape(width=16, layers=1, heads=1))
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, tmp_path / "trunk.safetensors")
    with pytest.raises(ValueError, match=r"--freeze trunk needs .* the start weights hold a FaceTrunk"):
        train.train(replace(config, clip_model=str(tmp_path / "trunk.safetensors")))


def test_calibration_is_without_dropout(config: TrainConfig) -> None:
    """In training mode too; the batch norms have the statistics of their batches, as published."""
    run = start_run(replace(config, dropout=0.5), torch.device("cpu"))
    table, _ = read_faces(config.data_list, run.model.preprocessing)
    table.images.cached = frozen_levels(tower_of(run.model), table.images, run.device)
    before = tower_of(run.model).standardise.running_mean.clone()
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        calibrate(run, table)
        found.append(run.divergences)
    assert torch.equal(*found)
    assert tower_of(run.model).dropout == 0.5
    assert not torch.equal(tower_of(run.model).standardise.running_mean, before)


@torch.no_grad()
def test_threads_that_come_first_together_pack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = FusedConv(torch.nn.Conv2d(16, 16, 3, padding=1).eval().to(memory_format=torch.channels_last), "relu")
    if not layer.onednn:
        pytest.skip("needs a torch with oneDNN")
    images = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    pack, calls, all_there = torch.ops.mkldnn._reorder_convolution_weight, [], threading.Barrier(4)

    def slow_pack(*args: object) -> torch.Tensor:
        calls.append(1)
        time.sleep(0.2)  # long enough for the others to arrive
        return pack(*args)

    def forward(_: int) -> torch.Tensor:
        all_there.wait(timeout=60)
        with torch.no_grad():
            return layer(images)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", slow_pack)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(forward, range(4)))
    assert calls == [1]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
