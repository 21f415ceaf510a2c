"""eDifFIQA's training: losses against published numbers, and runs on synthetic pictures with a tiny backbone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from recipe_tensors import recipe_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_parts import interrupted, join, leave, read_log, same_tensors, train_by_one_and_two

from methods.ediffiqa import train as script
from methods.ediffiqa.config import PRESETS, Config, parse_arguments
from methods.ediffiqa.data import read_items
from methods.ediffiqa.loop import rate_factor, validate
from methods.ediffiqa.losses import centre_distance, consistency_loss, optimised_labels, quality_loss, total_loss
from methods.ediffiqa.run import make_network, start_run, trained_parameters
from methods.ediffiqa.train import train
from model import load
from model.ediffiqa import EDifFIQA
from model.iresnet import IResNet
from model.preprocessing import FACE_PREPROCESSING
from training.step import TrainingError, train_mode

WIDTH, SIDE, IMAGES, CLASSES = 24, 32, 40, 4


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "ediffiqa" / "ediffiqa_losses.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def test_published_losses_and_gradients(published: dict[str, Tensor]) -> None:
    features = published["embeddings"].clone().requires_grad_()
    predictions = published["predictions"].clone().requires_grad_()
    distance = centre_distance(features, published["centres"][published["ids"]])
    torch.testing.assert_close(distance, published["centre_distance"])
    labels = optimised_labels(published["labels"], distance, float(published["epsilon"]))
    torch.testing.assert_close(labels, published["optimised_labels"])
    consistency = consistency_loss(features, published["teacher_embeddings"])
    quality = quality_loss(predictions, labels)
    total = total_loss(consistency, quality, float(published["theta"]))
    torch.testing.assert_close(consistency, published["loss_consistency"])
    torch.testing.assert_close(quality, published["loss_quality"])
    torch.testing.assert_close(total, published["loss_total"])
    total.backward()
    torch.testing.assert_close(features.grad, published["grad_embeddings"])
    torch.testing.assert_close(predictions.grad, published["grad_predictions"])


def test_published_validation(published: dict[str, Tensor]) -> None:
    quality = quality_loss(published["predictions"], published["labels"])
    consistency = consistency_loss(published["embeddings"], published["teacher_embeddings"])
    torch.testing.assert_close(quality, published["val_loss_quality"])
    torch.testing.assert_close(total_loss(consistency, quality, 0.5), published["val_loss_total"])


@pytest.mark.parametrize(
    ("variant", "first", "count"),
    [
        ("L", "layer3.22.bn3.bias", 100),
        ("M", "layer3.6.bn3.bias", 100),
        ("S", "conv1.weight", 94),
        ("T", "conv_4.model.0.project.bn.weight", 100),
    ],
)
def test_the_last_hundred_tensors_train(golden: Path, variant: str, first: str, count: int) -> None:
    network = EDifFIQA.from_tensors(recipe_tensors(golden / "ediffiqa" / f"ediffiqa{variant}_keys.json"))
    names = {parameter: name for name, parameter in network.base_model.named_parameters()}
    trained = trained_parameters(network, 100)
    assert len(trained) == count
    assert names[trained[0]] == first
    assert len(trained_parameters(network, 0)) == len(names)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose brightness is their quality and whose tint is their class, items and teacher embeddings."""
    folder, rng = tmp_path_factory.mktemp("items"), np.random.default_rng(0)
    tints, directions = rng.uniform(0.4, 1, (CLASSES, 3)), rng.normal(size=(CLASSES, WIDTH))
    names, lines, embeddings = [], ["path\tscore\tclass"], []
    (folder / "faces").mkdir()
    for index in range(IMAGES):
        score, label = (index * 7 % IMAGES) / IMAGES, index % CLASSES
        pixels = rng.uniform(0, 60, (SIDE, SIDE, 3)) + 190 * score * tints[label]
        names.append(f"{label}/{index} a.png")
        (folder / "faces" / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "faces" / names[-1])
        lines.append(f"{names[-1]}\t{score + 3}\t{label}")
        embeddings.append(directions[label] + 0.3 * rng.normal(size=WIDTH))
    (folder / "items.tsv").write_text("\n".join([*lines, ""]))
    np.savez(folder / "centres.npz", identities=np.array(list("0123")), centres=directions.astype(np.float32))
    order = rng.permutation(IMAGES)  # the teacher's rows have an order of their own
    np.savez(
        folder / "teacher.npz",
        names=np.array([f"lfw/{names[i]}" for i in order]),
        embeddings=np.array(embeddings, np.float32)[order],
    )
    torch.manual_seed(0)
    start = IResNet((1, 1, 1, 1), (16, 16, 16, 16), embedding=WIDTH, image_size=SIDE)
    save_file(start.state_dict(), folder / "start.safetensors")
    return folder


def tiny(data: Path, output: Path, **settings: object) -> Config:
    given = {
        "items": str(data),
        "images": str(data / "faces"),
        "teacher": str(data / "teacher.npz"),
        "output": str(output),
        "start_weights": str(data / "start.safetensors"),
        "trained_tensors": 0,
        "mlp_width": 32,
        "batch_size": 12,
        "num_workers": 0,
        "lr": 3e-3,
        "mlp_lr": 3e-3,
        "device": "cpu",
    }
    return Config(**(given | settings))  # type: ignore[arg-type]


def test_learns_by_heart_and_keeps_the_best_network(data: Path, tmp_path: Path) -> None:
    path = train(tiny(data, tmp_path, epochs=25, schedule="cosine", epsilon=0.0))
    log = read_log(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "ediffiqa.safetensors", "log.jsonl", "state.safetensors"
    ]  # fmt: skip
    assert log[-1]["total"] < log[0]["total"] / 3
    validation = [record["validation"]["total"] for record in log]
    assert log[-1]["best"] == min(validation)
    network = load(path)
    assert isinstance(network, EDifFIQA)
    assert int(network.metadata["epochs"]) == 1 + int(np.argmin(validation))
    items, _ = read_items(data, data / "faces", data / "teacher.npz", network.preprocessing)
    rows = items.train.usable
    with torch.no_grad():
        predicted = network(network.preprocessing.normalise(items.train.cached[rows]))[1][:, 0]
    assert np.corrcoef(predicted, items.labels[rows])[0, 1] > 0.9


def test_resume_continues_bit_for_bit(data: Path, tmp_path: Path) -> None:
    straight = tiny(data, tmp_path / "straight", epochs=3, schedule="cosine")
    train(straight)
    broken = tiny(data, tmp_path / "broken", epochs=3, schedule="cosine")
    interrupted(script, broken, after=1)
    train(replace(broken, resume=True))
    for name in ("state.safetensors", "ediffiqa.safetensors"):
        assert same_tensors(*(load_file(tmp_path / run / name) for run in ("straight", "broken")))
    assert len({(tmp_path / run / "ediffiqa.safetensors").read_bytes() for run in ("straight", "broken")}) == 1
    times = {"seconds": 0, "images_per_second": 0}
    logs = [[record | times for record in read_log(tmp_path / run)] for run in ("straight", "broken")]
    assert logs[0] == logs[1]


def test_resume_refuses_another_run(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"there is no .*state\.safetensors"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(ValueError, match=r"--epsilon 0\.5, not 0\.25"):
        train(replace(config, resume=True, epsilon=0.25))


def test_validation_is_every_nth_of_the_sorted_images(data: Path) -> None:
    items, skipped = read_items(data, data / "faces", data / "teacher.npz", small_preprocessing())
    assert not skipped
    torch.testing.assert_close(items.labels, torch.arange(IMAGES) / (IMAGES - 1))
    assert items.validation.usable.tolist() == [0, 10, 20, 30]
    assert len(items.train.usable) == IMAGES - 4
    row = 17
    label, embedding, centre = items.targets(torch.tensor([row]))
    with np.load(data / "teacher.npz") as teacher:
        name = "lfw/" + "/".join(Path(items.train.paths[row]).parts[-2:])
        np.testing.assert_array_equal(embedding[0], teacher["embeddings"][teacher["names"].tolist().index(name)])
    assert label == items.labels[row]
    torch.testing.assert_close(centre[0], items.centres[int(Path(items.train.paths[row]).parts[-2])])


def small_preprocessing():
    return replace(FACE_PREPROCESSING, size=SIDE)


def test_images_that_cannot_be_read_are_left_out(data: Path, tmp_path: Path) -> None:
    lines = (data / "items.tsv").read_text().splitlines()
    (tmp_path / "items.tsv").write_text("\n".join([*lines[:25], "0/gone.png\t9\t0", ""]))
    (tmp_path / "centres.npz").write_bytes((data / "centres.npz").read_bytes())
    with np.load(data / "teacher.npz") as teacher:
        names, rows = [*teacher["names"], "0/gone.png"], np.concatenate([teacher["embeddings"], np.ones((1, WIDTH))])
    np.savez(tmp_path / "teacher.npz", names=np.array(names), embeddings=rows)
    items, skipped = read_items(tmp_path, data / "faces", tmp_path / "teacher.npz", small_preprocessing())
    assert skipped == [(str(data / "faces" / "0/gone.png"), "missing")]
    assert items.labels[:-1].max() == 1  # the score of the missing image sets no limit


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path score\n", "the header lacks path, score, class; expected the tab-separated path score class"),
        ("path\tscore\tclass\n", "has a header and no rows"),
        ("path\tscore\tclass\n0/0 a.png\tnan\t0\n", r"a finite score .* for 0/0 a\.png, not \['nan', '0'\]"),
        ("path\tscore\tclass\n0/0 a.png\t0.5\n", "line 2: 2 cells, expected 3"),
        ("path\tscore\tclass\n0/0 a.png\t0.5\t7\n", "class 7, centres.npz has 4 classes"),
        ("path\tscore\tclass\n0/other.png\t0.5\t0\n", "no counterpart"),
        ("path\tscore\tclass\n0/0 a.png\t0.5\t0\n1/1 a.png\t0.5\t1\n", "scores that differ were expected"),
        ("path\tscore\tclass\n0/0 a.png\t0.5\t0\n1/1 a.png\t0.6\t1\n", "too few to train on"),
    ],
)
def test_tables_that_do_not_fit_are_named(data: Path, tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "items.tsv").write_text(table)
    (tmp_path / "centres.npz").write_bytes((data / "centres.npz").read_bytes())
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path, data / "faces", data / "teacher.npz", small_preprocessing())


def test_a_teacher_of_another_width_is_refused(data: Path, tmp_path: Path) -> None:
    with np.load(data / "teacher.npz") as teacher:
        np.savez(tmp_path / "wide.npz", names=teacher["names"], embeddings=np.ones((IMAGES, 30), np.float32))
        zero = np.zeros((IMAGES, WIDTH), np.float32)
        np.savez(tmp_path / "zero.npz", names=teacher["names"], embeddings=zero)
    with pytest.raises(ValueError, match=r"makes 24 numbers of a face, the teacher 30"):
        train(tiny(data, tmp_path / "run", teacher=str(tmp_path / "wide.npz")))
    with pytest.raises(ValueError, match=r"embeddings of 30 numbers.*centres of 24"):
        read_items(data, data / "faces", tmp_path / "wide.npz", small_preprocessing())
    with pytest.raises(ValueError, match="is zero or not finite"):
        read_items(data, data / "faces", tmp_path / "zero.npz", small_preprocessing())


def test_frozen_tensors_and_batch_norms_stay(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, epochs=1, trained_tensors=5, batch_norm="trained")
    before = load_file(config.start_weights)
    train(config)
    after = load_file(tmp_path / "ediffiqa.safetensors")
    names = [name for name, _ in IResNet((1, 1, 1, 1), (16, 16, 16, 16), WIDTH, False, 0, SIDE).named_parameters()]
    for name in names:
        assert torch.equal(after[f"base_model.{name}"], before[name]) == (name not in names[-5:])
    assert torch.equal(after["base_model.bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(after["base_model.features.running_mean"], before["features.running_mean"])


def test_batch_norm_modes(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, trained_tensors=2)  # those of the last batch norm
    run = start_run(config, torch.device("cpu"), make_network(config, WIDTH))
    kinds = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d
    norms = [module for module in run.model.modules() if isinstance(module, kinds)]
    for rule, training in (("published", len(norms)), ("trained", 1), ("frozen", 0)):
        train_mode(run.model, rule)
        assert sum(norm.training for norm in norms) == training
        assert run.model.mlp.training
    assert config.batch_norm_rule() == "frozen"
    assert replace(config, start_weights="").batch_norm_rule() == "published"
    assert replace(config, batch_norm="trained").batch_norm_rule() == "trained"


def test_a_diverging_run_ends_with_advice(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--lr"):
        train(tiny(data, tmp_path, epochs=3, lr=1e30, mlp_lr=1e30))


def test_learning_rate_falls_along_a_cosine() -> None:
    config = Config(schedule="cosine", epochs=4)
    assert rate_factor(config, 0) == 1
    assert math.isclose(rate_factor(config, 2), 0.5)
    assert rate_factor(Config(), 2) == 1


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    flags = ["--items", str(data), "--images", "faces", "--teacher", "e.npz", "--output", str(tmp_path)]
    config = parse_arguments([*flags, "--preset", "small", "--epochs", "2"])
    assert (config.epochs, config.lr) == (2, PRESETS["small"]["lr"])
    with pytest.raises(ValueError, match="--theta must be from 0 to 1"):
        parse_arguments([*flags, "--theta", "2"])
    with pytest.raises(ValueError, match="--teacher must be"):
        parse_arguments(flags[:4])
    monkeypatch.setattr("sys.argv", ["train", *flags])
    assert script.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "e.npz does not exist" in error


def save_validation(rank: int, count: int, config: Config, path: str) -> None:
    """The validation losses of a new network, as process `rank` has them."""
    join(rank, count, Path(f"{path}.store"))
    torch.manual_seed(0)
    model = make_network(config, WIDTH)
    items, _ = read_items(config.items, config.images, config.teacher, model.preprocessing, validation_every=4)
    assert len(items.validation.usable) == 10
    losses = validate(start_run(config, torch.device("cpu"), model), items)
    save_file({name: torch.tensor(loss) for name, loss in losses.items()}, f"{path}.{rank}")
    leave(count)


def test_two_processes_validate_all_images_once(data: Path, tmp_path: Path) -> None:
    """In batches of nine and of one, of which the second process has no share."""
    config = tiny(data, tmp_path, batch_size=9, epsilon=0.0)
    save_validation(0, 1, config, str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_validation, (2, config, str(tmp_path / "two")), nprocs=2)
    one, first, second = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert same_tensors(first, second)
    for name, loss in one.items():
        torch.testing.assert_close(first[name], loss, rtol=1e-5, atol=1e-6)


def test_two_processes_train_what_one_does(data: Path, tmp_path: Path) -> None:
    """With frozen batch norms, whose statistics would be each process's own."""
    flags = ["--items", data, "--images", data / "faces", "--teacher", data / "teacher.npz", "--epochs", 2]
    flags += ["--start-weights", data / "start.safetensors", "--trained-tensors", 0, "--batch-norm", "frozen"]
    flags += ["--batch-size", 11, "--num-workers", 0, "--device", "cpu"]
    train_by_one_and_two("methods.ediffiqa.train", flags, tmp_path)
    one, two = (load_file(tmp_path / name / "ediffiqa.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-4)
    totals = [[record["total"] for record in read_log(tmp_path / name)] for name in ("one", "two")]
    assert totals[0] == pytest.approx(totals[1], abs=1e-5)
