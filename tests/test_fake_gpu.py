"""The trainings and the scoring networks on a GPU that has no arithmetic (tests/fake_gpu.py)."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cr_fiqa_parts import tiny, tiny_network, write_identities
from dsl_fiqa_parts import landmarks_for, small_network
from fake_gpu import CUDA, fake_gpu, let_numbers_be_read, pretend_processes
from test_multi_level import faces, small_tower, write_start_of_small_tower
from torch import nn
from training_parts import write_faces, write_start

from config_train import TrainConfig
from evaluation.pairs import Pairs
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.frozen import frozen_levels, tower_of
from methods.clib_fiqa.loop import batch_losses, calibrate, train_epoch, update
from methods.clib_fiqa.run import prepare_run, synchronise_batch_norms
from methods.cr_fiqa import loop as cr_fiqa_loop
from methods.cr_fiqa import run as cr_fiqa_run
from methods.cr_fiqa import train as cr_fiqa_train
from methods.cr_fiqa.data import read_identities
from methods.cr_fiqa.verification import PairSet
from methods.diffiqa import loop as diffiqa_loop
from methods.diffiqa import run as diffiqa_run
from methods.diffiqa.config import Config as DiffusionConfig
from methods.diffiqa.data import Pairs as DamagedPairs
from methods.dsl_fiqa import degradation
from methods.dsl_fiqa import loop as dsl_fiqa_loop
from methods.dsl_fiqa.config import DegradationConfig, QualityConfig
from methods.dsl_fiqa.data import Batch as RatedBatch
from methods.dsl_fiqa.train_degradation import start_run as degradation_start
from methods.ediffiqa import loop as ediffiqa_loop
from methods.ediffiqa import run as ediffiqa_run
from methods.ediffiqa.config import Config as EDifFiqaConfig
from methods.ediffiqa.data import TeacherBatch
from methods.label_optimization import loop as regressor_loop
from methods.label_optimization import run as regressor_run
from methods.label_optimization.config import Config as RegressorConfig
from methods.label_optimization.data import ScoredFaces
from model import load
from model.clib_fiqa import prompt_tokens
from model.confidence import ConfidenceMLP
from model.ediffiqa import EDifFIQA
from model.fast import accelerate
from model.regressor import QualityRegressor
from training.batches import on_device
from training.images import Images
from training.processes import GradientSums
from training.step import arithmetic

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from benchmarks.training import our_step, published_step, random_faces

RULES = ("text-tower", "published", "none", "trunk")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), 12)


@pytest.fixture(scope="module")
def starts(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Start weights for each freezing rule."""
    folders = [tmp_path_factory.mktemp(name) for name in ("clip", "levels")]
    clip, levels = write_start(folders[0], golden), write_start_of_small_tower(folders[1], factors=True)
    return {rule: levels if rule == "trunk" else clip for rule in RULES}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_both_stages_of_clib_fiqa(table: Path, starts: dict[str, Path], rule: str, processes: int) -> None:
    """Stage 1, calibration and stage 2, in which the calibration MLP has no gradients."""
    config = TrainConfig(data_list=str(table), clip_model=str(starts[rule]), freeze=rule, batch_size=6, num_workers=0)
    model, mlp = load(starts[rule]), ConfidenceMLP()
    labelled, _ = read_faces(config.data_list, model.preprocessing)
    with fake_gpu() as patch:
        let_numbers_be_read(patch)
        if processes > 1:
            pretend_processes(patch, processes)
        run = prepare_run(config, CUDA, model, mlp)
        labelled = labelled.to(CUDA)
        if rule == "trunk":
            labelled.images.cached = frozen_levels(tower_of(run.model), labelled.images, CUDA)
        assert train_epoch(run, labelled)["stage"] == 1
        calibrate(run, labelled)
        assert train_epoch(run, labelled)["stage"] == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_of_cr_fiqa(tmp_path: Path, processes: int) -> None:
    config = tiny(write_identities(tmp_path / "faces"), tmp_path / "run")
    backbone = cr_fiqa_run.make_backbone(config)
    identities, _ = read_identities(config.data, backbone.preprocessing)
    with fake_gpu() as patch:
        let_numbers_be_read(patch)
        if processes > 1:
            pretend_processes(patch, processes)
        run = cr_fiqa_run.start_run(config, CUDA, backbone, identities)
        cr_fiqa_loop.train_epoch(run, identities.to(CUDA), lambda: None)


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_the_precision_is_one_that_the_card_has(tmp_path: Path, starts, bf16: bool, expected) -> None:
    data = write_identities(tmp_path / "faces")
    config = tiny(data, tmp_path / "run")
    backbone = cr_fiqa_run.make_backbone(config)
    identities, _ = read_identities(config.data, backbone.preprocessing)
    model, mlp = load(starts["none"]), ConfidenceMLP()
    with fake_gpu(bf16):
        assert cr_fiqa_run.start_run(config, CUDA, backbone, identities).dtype == expected
        assert prepare_run(TrainConfig(), CUDA, model, mlp).dtype == expected


@pytest.mark.parametrize("rule", RULES)
def test_no_step_of_clib_fiqa_waits_for_the_card(table: Path, starts: dict[str, Path], rule: str) -> None:
    """Reading a number is an error here."""
    config = TrainConfig(clip_model=str(starts[rule]), freeze=rule, batch_size=6, precision="fp16")
    model, mlp = load(starts[rule]), ConfidenceMLP()
    labelled, _ = read_faces(table, model.preprocessing)
    with fake_gpu():
        run, labelled = prepare_run(config, CUDA, model, mlp), labelled.to(CUDA)
        if rule == "trunk":
            labelled.images.cached = torch.zeros(12, 2, tower_of(run.model).width)
        for divergences in (None, torch.zeros(12, device=CUDA)):
            run.divergences = divergences
            for batch in on_device(labelled.images.batches(6, (0,)), CUDA):
                norm = update(run, batch_losses(run, labelled, batch).sum())
                assert norm.device == CUDA


def test_no_step_of_cr_fiqa_waits_for_the_card(tmp_path: Path) -> None:
    config = tiny(write_identities(tmp_path / "faces"), tmp_path / "run", precision="bf16")
    backbone = cr_fiqa_run.make_backbone(config)
    identities, _ = read_identities(config.data, backbone.preprocessing)
    with fake_gpu():
        run, identities = cr_fiqa_run.start_run(config, CUDA, backbone, identities), identities.to(CUDA)
        run.targets = torch.zeros(16, 2, 512, device=CUDA)
        for batch in on_device(identities.images.batches(8, (0,)), CUDA):
            assert cr_fiqa_loop.train_step(run, identities, batch, 0.1).device == CUDA


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.zeros(count, side, side, 3, dtype=torch.uint8)


def test_no_step_of_ediffiqa_waits_for_the_card() -> None:
    network = EDifFIQA(tiny_network(quality_head=False, embedding=24), 24, 16)
    with fake_gpu():
        run = ediffiqa_run.start_run(EDifFiqaConfig(precision="fp16"), CUDA, network)
        batch = TeacherBatch(6, pictures(6, 32), torch.zeros(6), torch.ones(6, 24), torch.ones(6, 24))
        for moved in on_device([batch, batch], CUDA):
            assert ediffiqa_loop.train_step(run, moved).device == CUDA


def test_no_step_of_the_regressor_waits_for_the_card(tmp_path: Path) -> None:
    network = QualityRegressor(tiny_network(quality_head=False), 512)
    images = Images([], torch.arange(6), network.preprocessing, 0, pictures(6, 32))
    with fake_gpu():
        run = regressor_run.start_run(RegressorConfig(precision="fp16"), CUDA, network)
        faces = ScoredFaces(images, images, torch.zeros(6), np.arange(6)).to(CUDA)
        for batch in on_device(images.batches(6, (0,), flips=False), CUDA):
            assert regressor_loop.train_step(run, faces, batch).device == CUDA


def test_no_step_of_the_diffusion_waits_for_the_card() -> None:
    config = DiffusionConfig(size=32, width=16, multiples=(1, 2), batch_size=2, accumulate=2, precision="bf16")
    with fake_gpu():
        run = diffiqa_run.start_run(config, CUDA, "")
        pairs = [DamagedPairs(pictures(2, 32), pictures(2, 32), torch.arange(2))] * 4
        batches = on_device(diffiqa_loop.with_noise(config, pairs, 32, 0), CUDA)
        for _ in range(2):
            assert diffiqa_loop.train_step(run, batches).device == CUDA


def test_no_step_of_dsl_fiqa_waits_for_the_card() -> None:
    network, config = small_network(), QualityConfig(clip_norm=1.0)
    landmarks = landmarks_for(network, 2)
    with fake_gpu():
        network = network.to(CUDA)
        dsl_fiqa_loop.freeze_encoder(network)
        weights = [weight for part in dsl_fiqa_loop.trained_parts(network).values() for weight in part.parameters()]
        dtype, scaler = arithmetic("bf16", CUDA)
        sums = GradientSums(weights)
        run = dsl_fiqa_loop.QualityRun(config, CUDA, dtype, network, torch.optim.Adam(weights), scaler, sums)
        for batch in on_device([RatedBatch(torch.arange(2), pictures(2, 64), landmarks)], CUDA):
            assert dsl_fiqa_loop.train_step(run, batch, torch.zeros(2, device=CUDA)).device == CUDA


@pytest.mark.parametrize("loss", ["proximity", "supervised", "queue", "classifier"])
def test_no_step_of_degradation_learning_waits_for_the_card(loss: Any) -> None:
    config = DegradationConfig(loss=loss, widths=(16, 16, 16), queue=8, precision="bf16")
    with fake_gpu():
        run = degradation_start(config, 2, CUDA)
        batch = degradation.Pictures(2, pictures(4, 64), torch.tensor([0, 1, 0, 1]), pictures(4, 64))
        for moved in on_device([batch], CUDA):
            assert degradation.train_step(run, moved).device == CUDA


def test_every_process_verifies_a_share(tmp_path: Path) -> None:
    """A process that waits for another's verification would run into NCCL's time limit."""
    config = tiny(write_identities(tmp_path / "faces"), tmp_path / "run")
    backbone = cr_fiqa_run.make_backbone(config)
    identities, _ = read_identities(config.data, backbone.preprocessing)
    seen = []

    def verify(embed: Any, pair_set: PairSet) -> dict[str, float]:
        seen.append(embed(pair_set.images).shape)
        return {"accuracy": 0.5}

    with fake_gpu() as patch:
        gathered = pretend_processes(patch, 3)
        patch.setattr(dist, "get_rank", lambda *group: 2)
        patch.setattr(cr_fiqa_train, "verify", verify)
        run = cr_fiqa_run.start_run(config, CUDA, backbone, identities)
        for count in (8, 1):  # of one image the last process has none
            pairs = PairSet("pairs", Pairs([], np.zeros(0), np.zeros(0), np.zeros(0)), torch.zeros(count, 32, 32, 3))
            assert cr_fiqa_train.verify_all(run, [pairs]) == {"pairs": {"step": 0, "accuracy": 0.5}}
    assert seen == [(8, 512), (1, 512)]
    assert gathered == [CUDA, CUDA]


def test_a_network_with_synchronised_batch_norms_is_folded() -> None:
    """On the CPU, where a SyncBatchNorm in eval mode is a batch norm."""
    tower = small_tower(factors=True)
    images = tower.preprocessing.normalise(faces(2))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(tower)).eval()
    expected = tower(images)
    found = accelerate(synchronised, torch.float32, torch.device("cpu"))(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    kept = [module for module in synchronised.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert all(module.num_features in (tower.width, 8) for module in kept)  # those that follow no convolution


def test_only_what_trains_is_synchronised(starts: dict[str, Path]) -> None:
    model = synchronise_batch_norms(load(starts["trunk"]), "trunk")
    names = {name for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm)}
    assert names == {"clip.visual.standardise"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scoring_networks(starts: dict[str, Path], dtype: torch.dtype) -> None:
    """Those of CLIP, of several levels, and of CR-FIQA, from weights on the CPU and on the card."""
    networks = [load(starts["none"]).clip.visual, small_tower(factors=True), tiny_network().eval()]
    for network in networks:
        size = network.preprocessing.size
        for made_on in (torch.device("cpu"), CUDA):
            copy = deepcopy(network)
            with fake_gpu():
                fast = accelerate(copy.to(made_on), dtype, CUDA)
                images = network.preprocessing.normalise(torch.zeros(4, size, size, 3, dtype=torch.uint8, device=CUDA))
                found = fast(images.to(dtype))
                found = found[0] if isinstance(found, tuple) else found
                assert found.device == CUDA
                assert len(found) == 4


def test_the_steps_that_the_benchmark_compares() -> None:
    prompt_tokens()  # made outside: it is kept for the whole process
    with fake_gpu():
        pictures = random_faces(4)
        ours = [our_step(pictures, CUDA, precision) for precision in ("bf16", "fp32")]
        for step in (published_step(pictures, CUDA), *ours):
            step()
            step()
