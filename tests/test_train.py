"""train.py from a label table to a checkpoint, on a small CLIP and synthetic pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_parts import read_log, run_train, same_tensors, write_faces, write_start

import train
from config_train import PAPER, TrainConfig
from labels.label_table import read_labels, write_labels
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.losses import TASKS
from model import load
from model.checkpoint import sha256_of
from model.clib_fiqa import expected_quality, marginals
from training.step import TrainingError


@pytest.fixture(scope="module")
def start(golden, tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"), golden)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), 32)


@pytest.fixture
def config(start, table, tmp_path):
    """Four quick epochs, calibration after the second."""
    settings = {"epochs": 4, "calibration_epoch": 2, "lr": 1e-3, "batch_size": 16, "num_workers": 0, "device": "cpu"}
    return TrainConfig(data_list=str(table), clip_model=str(start), checkpoints=str(tmp_path / "run"), **settings)


def losses(config):
    return np.array([record["total"] for record in read_log(Path(config.checkpoints))])


def test_overfits_32_images(config):
    """Random labels of random pictures, learnt by heart, through both stages."""
    config = replace(config, epochs=60, calibration_epoch=40, lr=3e-3, lr_period=0, mlp_lr=1e-3, save_every=60)
    train.train(config)
    model = load(Path(config.checkpoints) / "clib_fiqa.safetensors")
    faces, _ = read_faces(config.data_list, model.preprocessing)
    with torch.no_grad():
        predicted = marginals(model(model.preprocessing.normalise(faces.images.cached)))
    assert np.corrcoef(expected_quality(predicted["quality"]), faces.quality)[0, 1] > 0.95
    hits = [(predicted[name].argmax(1) == faces.factors[:, i]).float().mean() for i, name in enumerate(TASKS[1:])]
    assert sum(hits) / 5 > 0.75
    assert losses(config)[-1] < losses(config)[0] / 3


def test_resume_continues_bit_for_bit(config, tmp_path):
    """Interrupted in stage 1; calibration and stage 2 come after. Only the times may differ."""
    straight = replace(config, epochs=6, calibration_epoch=4, freeze="none", checkpoints=str(tmp_path / "straight"))
    train.train(straight)
    broken = replace(straight, checkpoints=str(tmp_path / "broken"))
    train.train(replace(broken, epochs=3))
    with open(tmp_path / "broken" / "log.jsonl", "a") as log:  # as after a crash between two saved states
        log.write('{"epoch": 4}\n{"epoch": 5}\n')
    train.train(replace(broken, resume=True))
    for name in ("state", "clib_fiqa", "mlp"):
        a, b = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("straight", "broken"))
        assert same_tensors(a, b), name
    logs = [read_log(tmp_path / run) for run in ("straight", "broken")]
    assert [{**record, "seconds": 0} for record in logs[0]] == [{**record, "seconds": 0} for record in logs[1]]
    confidences = [(tmp_path / run / "confidence.tsv").read_text() for run in ("straight", "broken")]
    assert confidences[0] == confidences[1]


def test_resume_refuses_another_run(config, tmp_path):
    with pytest.raises(ValueError, match="--resume: there is no"):
        train.train(replace(config, resume=True))
    train.train(replace(config, epochs=1))
    with pytest.raises(ValueError, match="begun with --seed 323, not 4; give --seed 323"):
        train.train(replace(config, resume=True, seed=4))
    other = tmp_path / "other.tsv"
    write_labels(other, [replace(label, path=str(Path(config.data_list).parent / label.path), blur=0)
                         for label in read_labels(config.data_list)])  # fmt: skip
    with pytest.raises(ValueError, match="is not the table"):
        train.train(replace(config, resume=True, data_list=str(other)))


def test_the_checkpoint_tells_where_it_comes_from(config, table):
    train.train(replace(config, epochs=1, save_text_tower=False))
    path = Path(config.checkpoints) / "clib_fiqa.safetensors"
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["system"] == "clib-fiqa"
    assert metadata["data_sha256"] == sha256_of(table)
    assert metadata["torch"] == torch.__version__
    assert json.loads(metadata["settings"])["lr"] == 1e-3
    assert json.loads(metadata["preprocessing"])["size"] == 64
    assert "text_features" in keys
    assert not any(key.startswith(("transformer", "token_embedding")) for key in keys)
    assert load(path).preprocessing.size == 64


def test_training_goes_on_without_a_text_tower(config, tmp_path):
    """As from the shipped model, which stores the features of the sentences only."""
    train.train(replace(config, epochs=1, save_text_tower=False))
    again = replace(config, epochs=1, clip_model=f"{config.checkpoints}/clib_fiqa.safetensors")
    train.train(replace(again, checkpoints=str(tmp_path / "again")))
    with pytest.raises(ValueError, match=r"--freeze published .* a --clip-model with a text tower"):
        train.train(replace(again, freeze="published"))


@pytest.mark.parametrize(
    ("rule", "fixed", "trained"),
    [
        ("text-tower", {"token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight", "ln_final.weight"},
         {"visual.attnpool.positional_embedding", "visual.conv1.weight", "logit_scale"}),
        ("published", {"visual.attnpool.positional_embedding", "text_projection", "transformer.resblocks.0.ln_1.bias"},
         {"token_embedding.weight", "ln_final.weight", "visual.conv1.weight", "logit_scale"}),
        ("none", set(), {"visual.attnpool.positional_embedding", "transformer.resblocks.0.ln_1.bias", "logit_scale"}),
    ],
)  # fmt: skip
def test_freezing_rules(config, start, rule, fixed, trained):
    train.train(replace(config, epochs=1, freeze=rule))
    before, after = load_file(start), load_file(f"{config.checkpoints}/clib_fiqa.safetensors")
    assert {key for key in fixed | trained if not torch.equal(before[key], after[key])} == trained
    model = load(f"{config.checkpoints}/clib_fiqa.safetensors")
    torch.testing.assert_close(model.text_features, model.encode_prompts())  # they follow the text tower


def test_divergence_stops_with_advice_and_keeps_the_saved_state(config):
    train.train(replace(config, epochs=1))
    state = Path(config.checkpoints) / "state.safetensors"
    before = sha256_of(state)
    with pytest.raises(TrainingError, match=r"diverged in epoch 2, step \d, at learning rate .* lower --lr"):
        train.train(replace(config, resume=True, lr=1e30))
    assert sha256_of(state) == before


def test_equal_qualities_train(config, table, tmp_path):
    constant = tmp_path / "constant.tsv"
    write_labels(constant, [replace(label, path=str(table.parent / label.path), quality=3.0)
                            for label in read_labels(table)])  # fmt: skip
    train.train(replace(config, epochs=2, data_list=str(constant)))
    assert np.isfinite(losses(config)).all()


def test_equations_of_the_paper_train(config, tmp_path):
    train.train(config)
    paper = replace(config, **PAPER, checkpoints=str(tmp_path / "paper"))
    train.train(paper)
    assert np.isfinite(losses(paper)).all()
    assert losses(paper)[-1] < losses(paper)[0]
    assert abs(losses(paper)[0] - losses(config)[0]) > 0.5  # another loss altogether
    certainty = read_log(Path(paper.checkpoints))[1]["confidence"]
    assert 0.5 <= certainty["certainty_min"] <= certainty["certainty_max"] <= 1


def test_bf16_follows_fp32(config, tmp_path):
    train.train(config)
    half = replace(config, precision="bf16", checkpoints=str(tmp_path / "bf16"))
    train.train(half)
    np.testing.assert_allclose(losses(half), losses(config), rtol=0.05)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(tmp_path / "bf16/clib_fiqa.safetensors").values())


def test_a_compiled_tower_trains_the_same(config, tmp_path, monkeypatch):
    """With the compiler's front end only: its back end needs a minute and a C++ compiler."""
    compiled = []

    def compile_in_front(network):
        compiled.append(type(network).__name__)
        network._compiled_call_impl = torch.compile(network._call_impl, backend="eager", dynamic=False)

    config = replace(config, epochs=2, batches="full", batch_size=12)
    train.train(config)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_in_front)
    other = replace(config, compile=True, checkpoints=str(tmp_path / "compiled"))
    train.train(other)
    assert compiled == ["ModifiedResNet"]
    np.testing.assert_allclose(losses(other), losses(config), rtol=1e-3)
    a, b = (load_file(f"{c.checkpoints}/clib_fiqa.safetensors") for c in (config, other))
    assert a.keys() == b.keys()
    with pytest.raises(ValueError, match="--compile must be no with --freeze trunk"):
        replace(config, compile=True, freeze="trunk")


def test_tensorboard(config):
    pytest.importorskip("tensorboard")
    train.train(replace(config, epochs=1, tensorboard=True))
    assert list(Path(config.checkpoints).glob("events.out.tfevents.*"))


def test_without_tensorboard_no_epoch_begins(config, monkeypatch):
    """A package that is missing would else be noticed after the first epoch, before its state is written."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="--tensorboard needs a package: pip install tensorboard"):
        train.train(replace(config, tensorboard=True))
    assert not (Path(config.checkpoints) / "log.jsonl").exists()


def test_bad_rows_are_counted_and_listed(config, table, tmp_path):
    """Through the command line: exit code 0, and the published headerless rows."""
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes((table.parent / f"{index}.png").read_bytes())
    lines = ["0.png\t[[0.58]]\t2\t2\t1\t1\t1", "1.png\t[[1.7]]\t0\t0\t0\t0\t0", "2.png\t0.9\t1\t1\t0\t0\t0"]
    lines += ["gone.png\t1\t0\t0\t0\t0\t0", "0.png\t\t0\t0\t0\t0\t0"]
    (tmp_path / "rows.txt").write_text("\n".join(lines) + "\n")
    done = run_train(["--data-list", tmp_path / "rows.txt", "--clip-model", config.clip_model,
                      "--checkpoints", tmp_path / "out", "--epochs", 1])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 rows cannot train (1 no_quality, 1 missing)" in done.stderr
    listed = (tmp_path / "out" / "rows.txt.skipped.tsv").read_text().splitlines()
    assert sorted(listed[1:]) == ["0.png\tno_quality", "gone.png\tmissing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-list", "nowhere.tsv"], "--data-list nowhere.tsv: no such file"),
        (["--clip-model", "nowhere.pth"], "nowhere.pth"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--device", "cuda:7"], "the device cuda:7 cannot be used"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(config, arguments, message):
    given = ["--data-list", config.data_list, "--clip-model", config.clip_model, "--checkpoints", config.checkpoints]
    done = run_train([*given, *arguments])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_mlp_or_network_of_another_kind_is_refused(config, tmp_path):
    train.train(replace(config, epochs=1))
    mlp = f"{config.checkpoints}/mlp.safetensors"
    with pytest.raises(ValueError, match="holds a ConfidenceMLP; a ClibFiqa was expected"):
        train.train(replace(config, clip_model=mlp))
    save_file({"fc1.weight": torch.zeros(3, 3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="odd"):
        train.train(replace(config, mlp=str(tmp_path / "odd.safetensors")))
