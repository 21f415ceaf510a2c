"""Both trainings of DSL-FIQA: they run, resume bit for bit, learn, and say what is wrong in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from dsl_fiqa_parts import write_set
from PIL import Image
from safetensors.torch import load_file
from training_parts import ROOT, interrupted, read_log

from faces.degradations import gaussian_blur
from faces.reader import read_image
from methods.dsl_fiqa import train as script
from methods.dsl_fiqa import train_degradation as degradation_script
from methods.dsl_fiqa.config import QualityConfig, parse_degradation, parse_quality
from methods.dsl_fiqa.degradation import crop_of, label_of, plan
from methods.dsl_fiqa.loop import learning_rate
from methods.dsl_fiqa.make_set import part_of, score_of
from methods.dsl_fiqa.networks import start_with_cosines
from methods.dsl_fiqa.train import start_run, train
from methods.dsl_fiqa.train_degradation import train as train_degradation
from model import CheckpointError, load
from model.checkpoint import read_checkpoint, save_checkpoint
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa
from recipes.dsl_fiqa import ablation
from training.step import TrainingError

SMALL = {
    "image_size": 64,
    "trunk_width": 32,
    "trunk_depth": 2,
    "levels": 1,
    "tab_blocks": 1,
    "widths": (16, 16),
    "depths": (1,),
    "swin_mlp": 16,
    "decoder_width": 16,
    "decoder_blocks": 1,
    "landmarks": "light",
    "batch_size": 3,
    "num_workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets to train and validate on, and the encoder."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "train", 8)
    write_set(folder / "val", 5)
    torch.manual_seed(0)
    save_checkpoint(folder / "DE.safetensors", DegradationEncoder((16, 16, 16)).state_dict(), {})
    return folder


def quality_config(sets: Path, output: Path, **changes: Any) -> QualityConfig:
    settings = SMALL | {"data": str(sets / "train"), "validation": str(sets / "val"), "epochs": 2, "lr": 1e-3}
    settings |= {"encoder": str(sets / "DE.safetensors"), "output": str(output)}
    return QualityConfig(**(settings | changes))  # type: ignore[arg-type]


def test_quality_training_writes_one_file_that_scores(sets: Path, tmp_path: Path) -> None:
    path = train(quality_config(sets, tmp_path))
    network = load(path)
    assert isinstance(network, DslFiqa)
    encoder = load(sets / "DE.safetensors").state_dict()
    assert network.encoder is not None
    for key, tensor in network.encoder.state_dict().items():  # batch statistics and counters, too
        assert torch.equal(tensor, encoder[key]), key
    first, second = read_log(tmp_path)
    assert (first["step"], second["step"]) == (3, 6)
    assert second["best"] == max(record["validation"]["srcc"] for record in (first, second))


def test_the_files_say_how_they_read_pictures_and_where_they_come_from(sets: Path, tmp_path: Path) -> None:
    network = read_checkpoint(train(quality_config(sets, tmp_path / "quality", epochs=1)))[1]
    photographs = write_photographs(tmp_path / "photographs")
    arguments = degradation_arguments(photographs, tmp_path / "encoder")
    encoder = read_checkpoint(train_degradation(parse_degradation(arguments)))[1]
    for metadata in (network, encoder):
        assert {"system", "architecture", "preprocessing", "settings", "epochs", "data", "torch"} <= metadata.keys()
        assert json.loads(metadata["settings"])["seed"] == 20
        assert len(metadata["data"]) == 64
        assert metadata["torch"] == torch.__version__
    assert json.loads(network["preprocessing"]) == {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert (network["epochs"], float(network["validation"])) == ("1", read_log(tmp_path / "quality")[0]["best"])
    assert json.loads(encoder["preprocessing"])["size"] == json.loads(encoder["settings"])["image_size"]


def test_a_resumed_training_is_the_same(sets: Path, tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        config = quality_config(sets, tmp_path / name, epochs=3)
        if name == "whole":
            train(config)
        else:
            interrupted(script, config, after=1)
            train(replace(config, resume=True))
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert len({(tmp_path / name / "dsl_fiqa.safetensors").read_bytes() for name in ("whole", "parts")}) == 1
    logs = [[record["validation"] for record in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_other_settings_and_pictures_are_not_resumed(sets: Path, tmp_path: Path) -> None:
    config = quality_config(sets, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="--resume: there is no"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(ValueError, match=r"was begun with --lr 0\.001, not 0\.01"):
        train(replace(config, resume=True, lr=0.01))
    with pytest.raises(ValueError, match="the pictures are not those"):
        train(replace(config, resume=True, data=str(sets / "val")))


def test_the_network_learns_its_training_set(tmp_path: Path) -> None:
    """Brightness is the score: a few epochs suffice."""
    folder = write_set(tmp_path / "set", 10, size=64)
    scores = np.linspace(0, 1, 10)
    for index, score in enumerate(scores):
        Image.fromarray(np.full((64, 64, 3), 30 + 190 * score, np.uint8)).save(folder / "img" / f"{index:02}.png")
    labels = {"Image": [f"{index:02}.png" for index in range(10)], "MOS": scores.tolist()}
    (folder / "label.json").write_text(json.dumps(labels))
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "DE.safetensors", DegradationEncoder((16, 16, 16)).state_dict(), {})
    config = quality_config(
        tmp_path, tmp_path / "out", data=str(folder), validation=str(folder), epochs=25, schedule="epoch", period=25
    )
    train(config)
    records = read_log(tmp_path / "out")
    assert records[-1]["best"] > 0.95
    assert records[-1]["loss"] < records[0]["loss"] / 2


def test_learning_rates() -> None:
    by_batch, by_epoch = (QualityConfig(lr=2.0, period=4, schedule=name) for name in ("batch", "epoch"))  # type: ignore[arg-type]
    assert [learning_rate(by_batch, 0, step) for step in (0, 2, 4, 6, 8)] == pytest.approx([2, 1, 0, 1, 2])
    assert [learning_rate(by_epoch, epoch, 99) for epoch in (0, 2, 4)] == pytest.approx([2, 1, 0])


@pytest.mark.parametrize("steps", [100, 419, 838])
def test_the_rate_of_the_small_preset_only_falls(steps: int) -> None:
    """Whatever the number of steps of an epoch; 419 has the set of the shipped network."""
    folders = ["--data", "a", "--validation", "b", "--encoder", "DE.pt", "--output", "out"]
    config = parse_quality([*folders, "--preset", "small"])
    rates = [learning_rate(config, step // steps, step) for step in range(config.epochs * steps)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == config.lr > 100 * rates[-1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
def test_the_shipped_network_is_made_with_the_schedule_that_it_had() -> None:
    done = subprocess.run(["make", "-n", "dsl-fiqa"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    line = next(line for line in lines if "-m methods.dsl_fiqa.train " in line)
    config = parse_quality(line.split("methods.dsl_fiqa.train ")[1].split())
    assert (config.schedule, config.period, config.epochs, config.lr) == ("batch", 8380, 20, 4e-4)


def test_the_rate_of_a_short_run_falls_in_each_step(tmp_path: Path) -> None:
    write_set(tmp_path / "train", 70, size=32)
    args = Namespace(output=tmp_path, epochs=3)
    config = ablation.settings(args, {"landmarks": "full"}, tmp_path / "DE.safetensors", 1, "full")
    assert (config.schedule, config.period, config.landmarks, config.seed) == ("batch", 9, "full", 1)


def test_a_diverged_training_says_so(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged in epoch 1 .*lower --lr"):
        train(quality_config(sets, tmp_path, lr=1e30))


def test_start_weights_and_trunk(sets: Path, tmp_path: Path) -> None:
    run = start_run(quality_config(sets, tmp_path), torch.device("cpu"))
    save_checkpoint(tmp_path / "start.safetensors", run.network.to_tensors(), {})
    save_checkpoint(tmp_path / "trunk.safetensors", run.network.vit.state_dict(), {})
    config = quality_config(sets, tmp_path, start_weights=str(tmp_path / "start.safetensors"), encoder="")
    again = start_run(config, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(run.network.parameters(), again.network.parameters(), strict=True))
    config = quality_config(sets, tmp_path, trunk=str(tmp_path / "trunk.safetensors"), seed=7)
    other = start_run(config, torch.device("cpu")).network
    assert all(torch.equal(a, b) for a, b in zip(run.network.vit.parameters(), other.vit.parameters(), strict=True))
    assert not torch.equal(run.network.conv1.weight, other.conv1.weight)
    with pytest.raises(CheckpointError, match=r"--trunk: .*does not fit VisionTransformer"):
        start_run(replace(config, trunk_depth=4), torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a", "--validation", "b", "--output", "o"], "--encoder must be DE.pt, or"),
        (["--data", "a", "--output", "o", "--encoder", "e"], "--validation must be a set"),
        (["--levels", "7"], "--levels must be at most half of --trunk-depth 12"),
        (["--image-size", "100"], "--image-size must be a multiple of 64"),
        (["--trunk-width", "129"], "--trunk-width must be a multiple of 64"),
        (["--decoder-width", "97"], "--decoder-width must be a multiple of 32"),
    ],
)
def test_bad_settings(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_quality(arguments)


def write_photographs(folder: Path, people: int = 3, each: int = 2) -> Path:
    for index in range(people * each):
        path = folder / f"person{index // each}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(recipe.mirror_image(400 + index, 80)).save(path)
    return folder


def degradation_arguments(folder: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--image-size", "64", "--widths", "16,16,16", "--batch-size", "4", "--num-workers", "0", "--device", "cpu"]
    return ["--data", str(folder), "--output", str(output), *fixed, "--epochs", "2", *more]


@pytest.mark.parametrize(
    "loss",
    [
        ["--loss", "proximity"],
        ["--loss", "proximity", "--positives", "image"],
        ["--loss", "supervised"],
        ["--loss", "queue", "--representation", "all", "--queue", "8"],
        ["--loss", "classifier"],
    ],
    ids=["proximity", "image", "supervised", "queue", "classifier"],
)
def test_degradation_learning_runs_and_resumes(tmp_path: Path, loss: list[str]) -> None:
    photographs = write_photographs(tmp_path / "photographs")
    (photographs / "person0" / "broken.png").write_bytes(b"no picture")
    path = train_degradation(parse_degradation(degradation_arguments(photographs, tmp_path / "whole", *loss)))
    assert isinstance(load(path), DegradationEncoder)
    config = parse_degradation(degradation_arguments(photographs, tmp_path / "parts", *loss))
    interrupted(degradation_script, config, after=1)
    train_degradation(replace(config, resume=True))
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert len({(tmp_path / name / path.name).read_bytes() for name in ("whole", "parts")}) == 1


def test_pictures_kept_in_memory_train_the_same_encoder(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs")
    encoders = []
    for cache in ("yes", "no"):
        arguments = degradation_arguments(photographs, tmp_path / cache, "--cache", cache)
        encoders.append(load_file(train_degradation(parse_degradation(arguments))))
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])


def test_every_content_is_a_distractor() -> None:
    config = parse_degradation(["--data", "x", "--output", "y", "--batch-size", "6", "--image-size", "64"])
    kinds = ("jpeg", "noise")
    steps = plan(config, kinds, [f"p{i}" for i in range(7)], ["r"], epoch=0)
    assert len(steps) == 3
    assert {sample.path for synthetic, _ in steps for sample in synthetic} == {f"p{i}" for i in range(7)}
    for synthetic, real in steps:
        first, second = synthetic[: len(synthetic) // 2], synthetic[len(synthetic) // 2 :]
        for a, b in zip(first, second, strict=True):
            assert (a.kind, a.strength) == (b.kind, b.strength)
            assert a.path != b.path
            assert a.seed != b.seed
        assert sorted(sample.path for sample in first) == sorted(sample.path for sample in second)
        assert len(real) == len(synthetic) in (4, 6)
        assert {sample.kind for sample in real} == {""}
    assert steps == plan(config, kinds, [f"p{i}" for i in range(7)], ["r"], epoch=0)
    assert steps != plan(config, kinds, [f"p{i}" for i in range(7)], ["r"], epoch=1)


def test_labels_hold_kind_and_strength() -> None:
    config = parse_degradation(["--data", "x", "--output", "y"])
    synthetic, _ = plan(config, ("jpeg", "noise"), ["a", "b"], ["r"], 0)[0]
    labels = [label_of(sample, ("jpeg", "noise"), 4) for sample in synthetic]
    assert all(label // 4 == ("jpeg", "noise").index(s.kind) for label, s in zip(labels, synthetic, strict=True))
    assert label_of(synthetic[0]._replace(kind="noise", strength=1.0), ("jpeg", "noise"), 4) == 7
    image = recipe.mirror_image(1, 70)
    real = synthetic[0]._replace(kind="")
    crop = crop_of(image, real, 64)
    rows = np.lib.stride_tricks.sliding_window_view(image, (64, 64, 3))[:, :, 0]
    assert any(np.array_equal(crop, window) for line in rows for window in line)  # undamaged
    assert not np.array_equal(crop, crop_of(image, synthetic[0], 64))


def test_people_are_in_one_part_each() -> None:
    parts = [part_of(f"person {index}", seed=1) for index in range(2000)]
    assert parts == [part_of(f"person {index}", seed=1) for index in range(2000)]
    assert abs(parts.count("train") / 2000 - 0.8) < 0.05
    assert abs(parts.count("test") / 2000 - 0.15) < 0.04


def test_the_score_is_the_strength_alike_for_all_kinds() -> None:
    """Every damaged picture is below every undamaged one, and a stronger damage below a weaker one."""
    assert score_of("none", 0.0) == 1
    assert [score_of("noise", strength) for strength in (0.0, 0.25, 1.0)] == pytest.approx([0.8, 0.6, 0.0])
    assert score_of("jpeg", 0.7) == score_of("noise", 0.7)


def test_filters_that_answer_to_pictures_about_equally() -> None:
    """Of cosines the strongest answer is a few times the weakest, of random filters none sees blur."""
    face = read_image(ROOT / "samples" / "astronaut.png")
    pictures = np.stack([face, gaussian_blur(face, 0.3, np.random.default_rng(0))])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    answers = {}
    for name in ("random", "cosines"):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 64, 16, 16)
        if name == "cosines":
            start_with_cosines(layer, seed=1)
        answers[name] = layer(images).detach().flatten(2).std(2)  # (2, 64)
    spread = answers["cosines"][0].quantile(0.9) / answers["cosines"][0].quantile(0.1)
    assert spread < 12
    kept = {name: (blurred / sharp).median() for name, (sharp, blurred) in answers.items()}
    assert kept["cosines"] < 0.6 < 0.9 < kept["random"]
    again = torch.nn.Conv2d(3, 64, 16, 16)
    start_with_cosines(again, seed=1)
    assert torch.equal(again.weight, layer.weight)


def run_module(name: str, *arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", f"methods.dsl_fiqa.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_commands_from_photographs_to_predictions(tmp_path: Path) -> None:
    people = tmp_path / "people"
    parts = [part_of(f"person{index}", seed=20) for index in range(60)]
    chosen = [index for name in ("train", "val", "test") for index in [k for k in range(60) if parts[k] == name][:3]]
    for cut_off, index in enumerate(chosen):
        path = people / f"person{index}" / "a.png"
        path.parent.mkdir(parents=True)
        photograph = Image.open(ROOT / "samples" / "astronaut.png").convert("RGB")
        photograph.crop((0, 0, photograph.width, photograph.height - cut_off)).save(path)
    made_of = ["--versions", 2, "--size", 64, "--workers", 0, "--held-out", "jpeg"]
    made = run_module("make_set", people, "--output", tmp_path / "set", *made_of)
    assert made.returncode == 0, made.stderr
    unseen = (tmp_path / "set" / "unseen.txt").read_text().split()
    assert unseen == sorted(f"person{index}" for index in chosen if parts[index] != "train")
    damage = {part: (tmp_path / "set" / part / "damage.tsv").read_text() for part in ("train", "val", "test")}
    assert "jpeg" in damage["test"]
    assert "jpeg" not in damage["train"] + damage["val"]
    learned = run_module("train_degradation", *degradation_arguments(people, tmp_path / "de"))
    assert learned.returncode == 0, learned.stderr
    sizes = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", _text(value))]
    folders = ["--data", tmp_path / "set" / "train", "--validation", tmp_path / "set" / "val"]
    files = ["--encoder", learned.stdout.strip(), "--output", tmp_path / "out"]
    trained = run_module("train", *folders, *files, *sizes, "--epochs", 1)
    assert trained.returncode == 0, trained.stderr
    where = ["--weights", trained.stdout.strip(), "--output", tmp_path / "predictions.csv"]
    scored = run_module("evaluate", tmp_path / "set" / "test", *where, "--workers", 0, "--device", "cpu")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["pictures"] == damage["test"].count("\n") - 1


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_both_trainings_run_on_two_processes(sets: Path, tmp_path: Path) -> None:
    """Each ends with one file and a line an epoch; of a batch of three one process has two pictures."""
    photographs = write_photographs(tmp_path / "photographs")
    learned = run_module("train_degradation", *degradation_arguments(photographs, tmp_path / "de"), processes=2)
    assert learned.returncode == 0, learned.stderr
    assert isinstance(load(learned.stdout.strip()), DegradationEncoder)
    sizes = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", _text(value))]
    folders = ["--data", sets / "train", "--validation", sets / "val", "--output", tmp_path / "out"]
    files = ["--encoder", learned.stdout.strip(), "--epochs", 2]
    trained = run_module("train", *folders, *files, *sizes, processes=2)
    assert trained.returncode == 0, trained.stderr
    assert isinstance(load(trained.stdout.strip()), DslFiqa)
    assert [record["step"] for record in read_log(tmp_path / "out")] == [3, 6]
    assert [record["epoch"] for record in read_log(tmp_path / "de")] == [1, 2]


def test_a_wrong_call_is_one_line(tmp_path: Path) -> None:
    folders = ["--data", tmp_path / "no", "--validation", tmp_path / "no", "--output", tmp_path / "out"]
    result = run_module("train", *folders, "--encoder", tmp_path / "DE.pt", "--device", "cpu")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "DE.pt: no such file" in result.stderr
