"""The training of DifFIQA's diffusion model, on tiny pictures and networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffiqa_parts import SIDE, write_models, write_pictures
from safetensors.torch import load_file
from training_parts import interrupted, read_log, same_tensors, train_by_one_and_two

from methods.diffiqa import train as script
from methods.diffiqa.config import PRESETS, Config, parse_arguments
from methods.diffiqa.data import batches, damage, find_images
from methods.diffiqa.run import start_run, update_average
from methods.diffiqa.train import main, train
from model import load
from model.preprocessing import FACE_PREPROCESSING
from training.step import TrainingError

SMALL = replace(FACE_PREPROCESSING, size=SIDE)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_pictures(folder, 6)
    return folder


def tiny(faces: Path, output: Path, **settings: object) -> Config:
    given = {"data": (str(faces),), "output": str(output), "size": SIDE, "width": 16, "multiples": (1, 2)}
    given |= {"batch_size": 3, "accumulate": 2, "steps": 6, "save_every": 3, "ema_every": 2, "num_workers": 0}
    return Config(**(given | {"device": "cpu", "lr": 2e-3} | settings))  # type: ignore[arg-type]


def test_the_loss_falls_and_the_model_loads(faces: Path, tmp_path: Path) -> None:
    path = train(tiny(faces, tmp_path, steps=60, save_every=20, lr=1e-2))
    log = read_log(tmp_path)
    assert [record["step"] for record in log] == [20, 40, 60]
    assert log[-1]["epoch"] == 60
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "diffusion.safetensors", "log.jsonl", "state.safetensors"
    ]  # fmt: skip
    assert load(path).preprocessing.size == SIDE
    state = load_file(tmp_path / "state.safetensors")
    key = "model.init_conv.weight"
    assert torch.equal(load_file(path)[key], state[f"average.{key}"])
    assert not torch.equal(state[f"average.{key}"], state[f"diffusion.{key}"])


def test_resume_continues_bit_for_bit(faces: Path, tmp_path: Path) -> None:
    train(tiny(faces, tmp_path / "straight"))
    broken = tiny(faces, tmp_path / "broken", num_workers=1)
    interrupted(script, broken, after=1)
    assert read_log(tmp_path / "broken")[-1]["step"] == 3
    train(replace(broken, resume=True))
    for name in ("state.safetensors", "diffusion.safetensors"):
        assert same_tensors(*(load_file(tmp_path / run / name) for run in ("straight", "broken")))
    train(tiny(faces, tmp_path / "again", num_workers=1))
    assert len({(tmp_path / run / "diffusion.safetensors").read_bytes() for run in ("again", "broken")}) == 1
    with pytest.raises(ValueError, match="--accumulate 2, not 1"):
        train(replace(broken, resume=True, accumulate=1))
    with pytest.raises(ValueError, match="not those that"):
        train(replace(broken, resume=True, data=(str(faces / "a"),)))


def test_accumulation_is_one_large_batch(faces: Path, tmp_path: Path) -> None:
    """The batches hold the same images with the same damage, however they are cut."""
    paths = find_images([str(faces)], [])
    whole = list(islice(batches(paths, SMALL, 6, 7, 0, 0), 2))
    halves = list(islice(batches(paths, SMALL, 3, 7, 0, 0), 4))
    for name in ("low", "high"):
        cut = torch.cat([getattr(batch, name) for batch in halves])
        assert torch.equal(torch.cat([getattr(batch, name) for batch in whole]), cut)
    later = next(batches(paths, SMALL, 3, 7, 3, 0))
    assert torch.equal(later.low, halves[3].low)


def test_every_pass_sees_every_image_once(faces: Path) -> None:
    paths = find_images([str(faces)], [])
    seen = []
    for batch in islice(batches(paths, SMALL, 2, 0, 0, 0), 6):
        for image in batch.high.numpy():
            seen.append(min(image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()))
    assert len(set(seen[:6])) == len(set(seen[6:])) == 6
    assert seen[:6] != seen[6:]


def test_damage_is_seeded_and_harms() -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (112, 112, 3)).astype(np.uint8)
    versions = [damage(face, np.random.default_rng(seed)) for seed in range(6)]
    assert all(version.shape == face.shape and version.dtype == np.uint8 for version in versions)
    assert len({version.tobytes() for version in versions}) == 6
    assert np.array_equal(versions[3], damage(face, np.random.default_rng(3)))
    assert all(np.abs(version.astype(int) - face).mean() > 1 for version in versions)


def test_identities_choose_the_folders(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("b\nnobody\n")
    chosen = find_images([str(faces)], [str(tmp_path / "train.txt")])
    assert [Path(path).parent.name for path in chosen] == ["b"] * 3
    (tmp_path / "train.txt").write_text("nobody\n")
    with pytest.raises(ValueError, match="no images were found"):
        find_images([str(faces)], [str(tmp_path / "train.txt")])
    with pytest.raises(ValueError, match="no such file or folder"):
        find_images([str(tmp_path / "nowhere")], [])


def test_bad_images_are_left_out_and_a_bad_batch_ends_the_run(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    paths = [*find_images([str(faces)], []), str(tmp_path / "bad.png")]
    found = list(islice(batches(paths, SMALL, 7, 0, 0, 0), 2))
    assert [len(batch.places) for batch in found] == [6, 6]
    with pytest.raises(TrainingError, match=r"bad\.png is not_an_image"):
        next(batches([str(tmp_path / "bad.png")], SMALL, 2, 0, 0, 0))


def test_the_average_follows_the_weights(faces: Path, tmp_path: Path) -> None:
    run = start_run(tiny(faces, tmp_path, ema_every=10), torch.device("cpu"), "")
    with torch.no_grad():
        for weight in run.diffusion.parameters():
            weight.fill_(1)
        for mean in run.average.parameters():
            mean.fill_(0)
    run.step = 100  # the tenth update: half of the old average stays
    update_average(run)
    assert all(torch.allclose(mean, torch.tensor(0.5)) for mean in run.average.parameters())
    run.step = 10**6
    update_average(run)
    assert all(torch.allclose(mean, torch.tensor(0.5025)) for mean in run.average.parameters())


def test_a_diverging_run_ends_with_advice(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--lr"):
        train(tiny(faces, tmp_path, lr=1e30))


def test_start_weights_may_be_a_finished_model(faces: Path, tmp_path: Path) -> None:
    write_models(tmp_path)
    train(tiny(faces, tmp_path / "run", steps=1, start_weights=str(tmp_path / "diffusion.safetensors"), saved="last"))
    before, after = (load_file(tmp_path / name) for name in ("diffusion.safetensors", "run/diffusion.safetensors"))
    assert before.keys() == after.keys()
    assert (before["model.final_conv.weight"] - after["model.final_conv.weight"]).abs().max() < 0.01
    with pytest.raises(ValueError, match="holds a IResNet"):
        train(tiny(faces, tmp_path / "run", start_weights=str(tmp_path / "fr.safetensors")))


def test_command_line(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--data", str(faces), "--output", str(tmp_path)]
    assert parse_arguments([*call, "--preset", "small"]).width == PRESETS["small"]["width"]
    assert parse_arguments([*call, "--multiples", "1,2"]).multiples == (1, 2)
    with pytest.raises(ValueError, match="--size must be a multiple of 8; it is 100"):
        parse_arguments([*call, "--size", "100"])
    with pytest.raises(ValueError, match="--data must be"):
        parse_arguments(["--output", "x"])
    monkeypatch.setattr("sys.argv", ["train", *call, "--preset", "small", "--resume", "--device", "cpu"])
    assert main() == 2
    error = capsys.readouterr().err
    assert "there is no" in error
    assert error.count("\n") == 1


def test_two_processes_train_what_one_does(faces: Path, tmp_path: Path) -> None:
    flags = ["--data", faces, "--size", SIDE, "--width", 16, "--multiples", "1,2", "--batch-size", 5, "--steps", 2]
    flags += ["--accumulate", 2, "--ema-every", 1, "--num-workers", 0, "--device", "cpu"]
    train_by_one_and_two("methods.diffiqa.train", flags, tmp_path)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-5)
