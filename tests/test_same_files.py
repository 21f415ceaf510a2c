"""One command and one seed make one file: byte for byte, interrupted or not."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cr_fiqa_parts
import pytest
import torch
from training_parts import interrupted, write_faces, write_start

import methods.clib_fiqa.files
import methods.clib_fiqa.train
import methods.cr_fiqa.config
import methods.cr_fiqa.train
import methods.diffiqa.config
import methods.diffiqa.run
import methods.dsl_fiqa.config
import methods.dsl_fiqa.run
import methods.ediffiqa.config
import methods.ediffiqa.run
import methods.label_optimization.config
import methods.label_optimization.run
import train
from config_train import TrainConfig
from methods.cr_fiqa.files import save_tensors
from model.checkpoint import read_checkpoint, save_checkpoint
from training.settings import NOT_RECORDED

CLIB_FIQA_FILES = ("clib_fiqa.safetensors", "mlp.safetensors", "state.safetensors", "confidence.tsv")


def test_metadata_has_an_order(tmp_path: Path) -> None:
    metadata = {name: "ü" * place for place, name in enumerate("zyxwvutsrq")}
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.float16)}
    contents = set()
    for number in range(8):
        save_checkpoint(tmp_path / f"{number}.safetensors", tensors, metadata)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    assert read_checkpoint(tmp_path / "0.safetensors")[1] == metadata


def test_a_state_dict_does_not_hold_its_temporary_name(tmp_path: Path) -> None:
    for name in ("one.pth", "two.pth"):
        save_tensors(tmp_path / name, {"a": torch.ones(3)})
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pth").read_bytes()


def same_files(one: Path, other: Path, names: list[str]) -> None:
    assert names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_clib_fiqa(golden: Path, tmp_path: Path) -> None:
    start, table = write_start(tmp_path, golden), write_faces(tmp_path, 16)
    settings = {"epochs": 3, "calibration_epoch": 1, "batch_size": 8, "num_workers": 0, "device": "cpu", "lr": 1e-3}
    config = TrainConfig(data_list=str(table), clip_model=str(start), checkpoints=str(tmp_path / "one"), **settings)
    train.train(config)
    train.train(replace(config, checkpoints=str(tmp_path / "two")))
    broken = replace(config, checkpoints=str(tmp_path / "three"))
    with pytest.MonkeyPatch.context() as patch:
        write = methods.clib_fiqa.train.write_epoch

        def write_and_stop(run: object, faces: object, record: dict) -> None:
            write(run, faces, record)
            if record["epoch"] == 1:
                raise KeyboardInterrupt

        patch.setattr(methods.clib_fiqa.train, "write_epoch", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(broken)
    train.train(replace(broken, resume=True))
    same_files(tmp_path / "one", tmp_path / "two", list(CLIB_FIQA_FILES))
    same_files(tmp_path / "one", tmp_path / "three", list(CLIB_FIQA_FILES))


@pytest.mark.parametrize(
    ("free", "settings"),
    [
        (methods.clib_fiqa.files.FREE, [TrainConfig]),
        (methods.cr_fiqa.files.FREE, [methods.cr_fiqa.config.Config]),
        (methods.diffiqa.run.FREE, [methods.diffiqa.config.Config]),
        (
            methods.dsl_fiqa.run.FREE,
            [methods.dsl_fiqa.config.QualityConfig, methods.dsl_fiqa.config.DegradationConfig],
        ),
        (methods.ediffiqa.run.FREE, [methods.ediffiqa.config.Config]),
        (methods.label_optimization.run.FREE, [methods.label_optimization.config.Config]),
    ],
)
def test_settings_that_may_change_are_recorded_ones(free: set[str], settings: list[type]) -> None:
    recorded = {field.name for kind in settings for field in fields(kind)} - set(NOT_RECORDED)
    assert free <= recorded


def test_cr_fiqa(tmp_path: Path) -> None:
    data = cr_fiqa_parts.write_identities(tmp_path / "data")
    config = cr_fiqa_parts.tiny(data, tmp_path / "one")
    methods.cr_fiqa.train.train(config)
    broken = replace(config, output=str(tmp_path / "two"), save_every=1)
    interrupted(methods.cr_fiqa.train, broken, after=1)
    methods.cr_fiqa.train.train(replace(broken, resume=True))
    last = sorted(path.name for path in (tmp_path / "one").glob("*.pth"))
    same_files(tmp_path / "one", tmp_path / "two", last)
