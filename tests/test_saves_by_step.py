"""Trainings that save within an epoch go on from there, and end as if they had never stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cr_fiqa_parts
import pytest
import torch
from test_multi_level import write_start_of_small_tower
from training_parts import interrupted, read_log, run_train, write_faces, write_start

import methods.clib_fiqa.loop
import methods.clib_fiqa.train
import methods.cr_fiqa.loop
import methods.cr_fiqa.train
from config_train import TrainConfig
from model.checkpoint import read_checkpoint
from training.images import Images
from training.means import StepValues
from training.step import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STOP_IN_THE_SECOND_EPOCH = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import methods.clib_fiqa.loop as loop
save = loop.save_state
def save_and_stop(run):
    save(run)
    if run.epoch == 1:
        raise KeyboardInterrupt
loop.save_state = save_and_stop
import train
sys.argv = sys.argv[1:]
sys.exit(train.main())
"""
TIMES = {"seconds": 0, "images_per_second": 0}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 faces with labels, and a network with dropout beside them."""
    folder = tmp_path_factory.mktemp("faces")
    write_start_of_small_tower(folder)
    return write_faces(folder, 18)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cr_fiqa_parts.write_identities(tmp_path_factory.mktemp("identities"))


def clib_fiqa(table: Path, output: Path, **settings: Any) -> TrainConfig:
    given = {"data_list": str(table), "clip_model": str(table.with_name("start.safetensors")), "epochs": 3}
    given |= {"calibration_epoch": 1, "batch_size": 4, "num_workers": 0, "device": "cpu", "lr": 1e-3}
    given |= {"freeze": "trunk", "dropout": 0.3}
    return TrainConfig(checkpoints=str(output), **(given | settings))


def cr_fiqa(data: Path, output: Path, **settings: Any) -> methods.cr_fiqa.config.Config:
    given = {"batch_size": 3, "dropout": 0.4, "variance_floor": 0.5, "sample_rate": 0.8, "schedule": "cosine"}
    return cr_fiqa_parts.tiny(data, output, **(given | settings))


def same_runs(one: Path, other: Path) -> None:
    """All files are equal byte for byte, but for the times in the log."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert name == "log.jsonl" or (one / name).read_bytes() == (other / name).read_bytes(), name
    logs = [[record | TIMES for record in read_log(folder)] for folder in (one, other)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("after", [2, 3, 6])
def test_clib_fiqa_goes_on_in_the_middle_of_an_epoch(table: Path, tmp_path: Path, after: int) -> None:
    """Five steps an epoch, saved after the second and the fourth: stage 1, its end, and stage 2."""
    train = methods.clib_fiqa.train.train
    straight = clib_fiqa(table, tmp_path / "straight", save_every_steps=2)
    train(straight)
    broken = replace(straight, checkpoints=str(tmp_path / "broken"))
    interrupted(methods.clib_fiqa.train, broken, after, methods.clib_fiqa.loop)
    tensors, _ = read_checkpoint(tmp_path / "broken" / "state.safetensors")
    assert len(tensors["past"]) == 2 * ((after - 1) % 2 + 1)
    train(replace(broken, resume=True))
    same_runs(tmp_path / "straight", tmp_path / "broken")
    assert "past" not in read_checkpoint(tmp_path / "broken" / "state.safetensors")[0]


@pytest.mark.parametrize("after", [1, 4])
def test_cr_fiqa_goes_on_in_the_middle_of_an_epoch(identities: Path, tmp_path: Path, after: int) -> None:
    """Six steps an epoch, with dropout, a sample of the classes and variances; images read from the disk."""
    train = methods.cr_fiqa.train.train
    straight = cr_fiqa(identities, tmp_path / "straight", save_every_steps=2, cache="no", num_workers=1)
    train(straight)
    broken = replace(straight, output=str(tmp_path / "broken"))
    interrupted(methods.cr_fiqa.train, broken, after, methods.cr_fiqa.loop)
    train(replace(broken, resume=True))
    same_runs(tmp_path / "straight", tmp_path / "broken")


def test_a_run_stopped_twice_in_one_epoch(table: Path, tmp_path: Path) -> None:
    train = methods.clib_fiqa.train.train
    straight = clib_fiqa(table, tmp_path / "straight", save_every_steps=1)
    train(straight)
    broken = replace(straight, checkpoints=str(tmp_path / "broken"))
    interrupted(methods.clib_fiqa.train, broken, 1, methods.clib_fiqa.loop)
    interrupted(methods.clib_fiqa.train, replace(broken, resume=True), 2, methods.clib_fiqa.loop)
    train(replace(broken, resume=True))
    same_runs(tmp_path / "straight", tmp_path / "broken")


def test_saves_by_step_do_not_change_the_training(identities: Path, tmp_path: Path) -> None:
    """Nor must they be there: a run that is stopped goes on after its last whole epoch without them."""
    train = methods.cr_fiqa.train.train
    train(cr_fiqa(identities, tmp_path / "with", save_every_steps=1))
    without = cr_fiqa(identities, tmp_path / "without")
    interrupted(methods.cr_fiqa.train, without, after=1)
    train(replace(without, resume=True))
    for path in (tmp_path / "with").glob("*.pth"):
        assert path.read_bytes() == (tmp_path / "without" / path.name).read_bytes()


def test_another_number_of_steps_is_refused(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many processes have fewer steps where their shares would be of one image."""
    train = methods.clib_fiqa.train.train
    config = clib_fiqa(table, tmp_path / "run", save_every_steps=2)
    interrupted(methods.clib_fiqa.train, config, 1, methods.clib_fiqa.loop)
    monkeypatch.setattr(Images, "steps", lambda *_: 4)
    with pytest.raises(ValueError, match=r"--resume: .* in the middle of an epoch of 5 steps, which has 4 now; go on"):
        train(replace(config, resume=True))


def test_a_step_that_is_not_finite_is_not_saved(table: Path, tmp_path: Path) -> None:
    train = methods.clib_fiqa.train.train
    with pytest.raises(TrainingError, match="The last saved state is kept"):
        train(clib_fiqa(table, tmp_path / "run", save_every_steps=1, lr=1e30))
    state = tmp_path / "run" / "state.safetensors"
    assert not state.exists() or all(tensor.isfinite().all() for tensor in read_checkpoint(state)[0].values())


def test_rows_of_other_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several processes takes a part of the weight of what one process did, so that the mean stays."""
    values = StepValues(torch.device("cpu"))
    values.add(torch.tensor([1.0, 5.0]), 6)
    values.add(torch.tensor([4.0, 6.0]), 3)
    values.read()
    past = values.over_processes()
    assert past.tolist() == [[1, 5, 6], [4, 6, 3]]
    monkeypatch.setattr("training.means.processes.count", lambda: 3)
    part = StepValues(torch.device("cpu"), past)
    assert part.weights == [2, 1]
    assert part.means().tolist() == values.means().tolist()


def test_one_process_goes_on_where_two_were_stopped(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second epoch. The losses are those of an undisturbed run, but for batch statistics."""
    table = write_faces(tmp_path, 12)
    write_start(tmp_path, golden)
    whole = clib_fiqa(table, tmp_path / "whole", epochs=2, lr=1e-4, freeze="text-tower", dropout=0.0)
    methods.clib_fiqa.train.train(whole)
    (tmp_path / "stop.py").write_text(STOP_IN_THE_SECOND_EPOCH)
    given = ["--data-list", table, "--clip-model", tmp_path / "start.safetensors", "--lr", 1e-4, "--batch-size", 4]
    given += ["--calibration-epoch", 1, "--epochs", 2, "--checkpoints", tmp_path / "run", "--save-every-steps", 2]
    assert run_train(given, [*TORCHRUN, str(tmp_path / "stop.py")]).returncode != 0
    assert len(read_checkpoint(tmp_path / "run" / "state.safetensors")[0]["past"]) == 2
    update, steps = methods.clib_fiqa.loop.update, []

    def counted(*given: Any) -> torch.Tensor:
        steps.append(1)
        return update(*given)

    monkeypatch.setattr(methods.clib_fiqa.loop, "update", counted)
    methods.clib_fiqa.train.train(replace(whole, checkpoints=str(tmp_path / "run"), resume=True))
    assert len(steps) == 1, "two of the three steps of the epoch were saved"
    totals = [[record["total"] for record in read_log(tmp_path / name)] for name in ("run", "whole")]
    assert totals[0] == pytest.approx(totals[1], rel=0.1)
