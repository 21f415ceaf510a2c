"""CR-FIQA's training from a folder of identities to its three files, on synthetic pictures and a tiny network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from cr_fiqa_parts import (
    encoded,
    picture,
    run_training,
    tiny,
    tiny_network,
    write_identities,
    write_records,
    write_start,
)
from safetensors.torch import load_file, save_file
from test_cr_fiqa_recordio import content
from training_parts import interrupted, join, leave, read_log, same_tensors

from labels.anchors import EmbeddedFaces, load_header
from methods.cr_fiqa import train as script
from methods.cr_fiqa import verify
from methods.cr_fiqa.config import PRESETS, Config, parse_arguments
from methods.cr_fiqa.data import read_identities
from methods.cr_fiqa.loop import choose_centres, learning_rate, share_losses, train_step
from methods.cr_fiqa.run import make_backbone, start_run
from methods.cr_fiqa.train import train
from methods.cr_fiqa.verification import fold_accuracies
from model import load
from training import processes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_identities(tmp_path_factory.mktemp("identities"))


def start(config: Config, seed: int = 0):
    """A run at its start, and its data."""
    torch.manual_seed(seed)
    backbone = make_backbone(config)
    identities, _ = read_identities(config.data, backbone.preprocessing, cache=config.cache)
    return start_run(config, torch.device("cpu"), backbone, identities), identities


def losses(folder: Path) -> list[float]:
    return [record["losses"]["identity"] for record in read_log(folder)]


def test_learns_identities_by_heart_and_writes_what_others_read(data, tmp_path):
    path = train(tiny(data, tmp_path, epochs=25, save_every=25, schedule="cosine"))
    log = read_log(tmp_path)
    assert path == tmp_path / f"{log[-1]['step']}backbone.pth"
    assert log[-1]["step"] == 50
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "50backbone.pth", "50classes.txt", "50header.pth", "log.jsonl", "state.safetensors"
    ]  # fmt: skip
    assert (tmp_path / "50classes.txt").read_text() == "id10\nid11\nid12\nid13\n"
    backbone, tensors = load(path), torch.load(path, weights_only=True)
    assert list(tensors) == list(backbone.state_dict())
    assert set(torch.load(tmp_path / "50header.pth", weights_only=True)) == {"kernel"}
    names = [f"id{10 + identity}/{number}.png" for identity in range(4) for number in range(4)]
    images = np.stack([picture(identity, number) for identity in range(4) for number in range(4)])
    with torch.no_grad():
        embeddings, quality = backbone(backbone.preprocessing.normalise(torch.from_numpy(images)))
    header = load_header(tmp_path / "50header.pth", 512, ["id10", "id11", "id12", "id13"])
    ccs, nnccs = header.similarities(EmbeddedFaces(embeddings.numpy(), names))
    assert (ccs > nnccs).mean() > 0.9
    assert log[-1]["losses"]["identity"] < log[0]["losses"]["identity"] / 4
    assert np.abs(quality[:, 0].numpy() - ccs / (nnccs + 1)).mean() < 0.2


def test_resume_continues_bit_for_bit(data, tmp_path):
    settings = {"epochs": 4, "schedule": "cosine", "warm_up": 1.0, "dropout": 0.4}
    settings |= {"variance_floor": 0.5, "sample_rate": 0.8}
    straight = tiny(data, tmp_path / "straight", **settings)
    train(straight)
    broken = tiny(data, tmp_path / "broken", **settings)
    interrupted(script, broken, after=2)
    with open(tmp_path / "broken" / "log.jsonl", "a") as log:  # as after a crash between two saved states
        log.write('{"epoch": 3}\n')
    train(replace(broken, resume=True))
    states = [load_file(tmp_path / run / "state.safetensors") for run in ("straight", "broken")]
    assert same_tensors(*states)
    assert {"variance", "header-optimizer.0.momentum_buffer", "backbone.qs.weight"} <= states[0].keys()
    times = {"seconds": 0, "images_per_second": 0}
    logs = [[record | times for record in read_log(tmp_path / run)] for run in ("straight", "broken")]
    assert logs[0] == logs[1]


def test_resume_refuses_another_run(data, tmp_path):
    config = tiny(data, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="--resume: there is no"):
        train(replace(config, resume=True))
    train(config)
    with pytest.raises(ValueError, match=r"begun with --alpha 10\.0, not 3\.0"):
        train(replace(config, resume=True, alpha=3.0))
    other = write_identities(tmp_path / "other", 3)
    with pytest.raises(ValueError, match="the images and identities are not those"):
        train(replace(config, resume=True, data=(str(other),)))


def test_sampling_all_classes_is_the_full_header(data, tmp_path):
    """Two steps, so that the momenta count; the optimisers are the library's and ours."""
    kernels = []
    for rate in (1.0, 0.999999):
        run, identities = start(tiny(data, tmp_path, sample_rate=rate))
        for batch in identities.images.batches(8, seed=(0,)):
            train_step(run, identities, batch, 0.05)
        kernels.append(run.header.kernel.detach())
    torch.testing.assert_close(*kernels)


def test_sampling_leaves_other_classes_alone(data, tmp_path):
    run, identities = start(tiny(data, tmp_path, sample_rate=0.25, batch_size=2))
    before = run.header.kernel.detach().clone()
    batch = next(identities.images.batches(2, seed=(0,)))
    train_step(run, identities, batch, 0.05)
    changed = (run.header.kernel != before).any(dim=0)
    assert changed.nonzero().flatten().tolist() == identities.labels[batch.rows].unique().tolist()


def test_classes_of_little_variance_do_not_teach_quality(data, tmp_path):
    run, identities = start(tiny(data, tmp_path, variance_floor=0.9, alpha=1.0))
    run.backbone.eval()
    batch = next(identities.images.batches(8, seed=(0,)))
    run.variance.copy_(torch.tensor([0.001, 0.001, 2.0, 2.0]))
    found, facts = share_losses(run, identities, batch, choose_centres(run, identities, batch))
    run.variance = None
    plain, _ = share_losses(run, identities, batch, choose_centres(run, identities, batch))
    assert facts[3] == (identities.labels[batch.rows] > 1).float().mean()
    assert 0 < found[1] < plain[1]
    assert found[0] == plain[0]


def test_start_weights(data, tmp_path):
    """With and without a quality head; depth and widths come from the file."""
    network = tiny_network(3, quality_head=False)
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    backbone = make_backbone(tiny(data, tmp_path, start_weights=str(tmp_path / "plain.pth"), dropout=0.3))
    assert backbone.qs is not None
    assert backbone.dropout.p == 0.3
    assert torch.equal(backbone.fc.weight, network.fc.weight)
    assert all(weight.requires_grad for weight in backbone.parameters())
    torch.save({"kernel": torch.zeros(2, 2)}, tmp_path / "header.pth")
    with pytest.raises(ValueError, match=r"--start-weights .* is no backbone"):
        make_backbone(tiny(data, tmp_path, start_weights=str(tmp_path / "header.pth")))


def test_a_teacher_sets_the_embeddings_and_the_centres(data, tmp_path):
    """The student is one of its own kind, and learns to point where the teacher does."""
    torch.save(tiny_network(5, embedding=32, quality_head=False).state_dict(), tmp_path / "teacher.pth")
    settings = {"teacher": str(tmp_path / "teacher.pth"), "epochs": 20, "alpha": 0.1}
    train(tiny(data, tmp_path / "run", schedule="cosine", lr=8.0, save_every=20, **settings))
    log = read_log(tmp_path / "run")
    assert log[0]["losses"]["teacher"] > 0.9
    assert log[-1]["losses"]["teacher"] < 0.8
    with pytest.raises(ValueError, match=r"--teacher .* needs --cache yes"):
        train(tiny(data, tmp_path / "streamed", cache="no", **settings))


def test_records_train_like_the_folder(tmp_path):
    faces = [(identity, number) for identity in range(3) for number in range(3)]
    contents = [content(0, [len(faces) + 1.0, 0.0])]
    contents += [content(i, float(face[0]), encoded(picture(*face))) for i, face in enumerate(faces, 1)]
    for name in ("a", "b", "c"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    for identity, number in faces:
        (tmp_path / "folder" / "abc"[identity] / f"{number}.jpg").write_bytes(encoded(picture(identity, number)))
    write_records(tmp_path / "records", contents)
    write_start(tmp_path / "folder")
    for name, cache in (("folder", "yes"), ("records", "no")):
        train(tiny(tmp_path / name, tmp_path / f"{name}-run", cache=cache))
    assert losses(tmp_path / "records-run") == losses(tmp_path / "folder-run")
    assert (tmp_path / "records-run" / "4classes.txt").read_text() == "0\n1\n2\n"


def test_named_identities_with_enough_images(tmp_path):
    folder = write_identities(tmp_path / "faces", 4, 2)
    (folder / "id12" / "1.png").unlink()
    (folder / "nobody.png").write_bytes((folder / "id10" / "0.png").read_bytes())
    preprocessing = tiny_network().preprocessing
    (tmp_path / "names.txt").write_text("id13\nid12\n\nid10\n")
    names = [str(tmp_path / "names.txt")]
    named, _ = read_identities([str(folder)], preprocessing, names=names)
    assert named.classes == ["id10", "id12", "id13"]
    assert named.labels[named.images.usable].tolist() == [0, 0, 1, 2, 2]
    several, _ = read_identities([str(folder)], preprocessing, names=names, min_images=2)
    assert several.classes == ["id10", "id13"]
    (tmp_path / "names.txt").write_text("id13\nid99\n")
    with pytest.raises(ValueError, match="1 identities have no images in --data, as id99"):
        read_identities([str(folder)], preprocessing, names=names)
    with pytest.raises(ValueError, match="0 readable images of 0 identities"):
        read_identities([str(folder / "id10")], preprocessing)


def test_verification_while_training(data, tmp_path, capsys):
    """Pairs of the training faces, which the network learns to tell apart; and afterwards, with the saved backbone."""
    rows = ["path_a\tpath_b\tsame"]
    for a in range(4):
        for b in range(4):
            rows += [f"id{10 + a}/{i}.png\tid{10 + b}/{3 - i}.png\t{int(a == b)}" for i in range(4)]
    (data / "pairs.tsv").write_text("\n".join([*rows, ""]))
    config = tiny(data, tmp_path, epochs=12, save_every=12, scale=16.0, margin=0.2)
    train(replace(config, verify=(str(data / "pairs.tsv"),)))
    log = read_log(tmp_path)
    found = [record["verification"]["pairs"] for record in log]
    assert found[-1]["accuracy"] > 0.8
    assert 0 <= found[-1]["accuracy_std"] < 0.5
    assert "tmr@0.01" not in found[-1]  # 48 non-mated pairs cannot tell
    best = max(found, key=lambda values: values["accuracy"])
    assert log[-1]["best"]["pairs"] == best
    assert verify.main([str(next(tmp_path.glob("*backbone.pth"))), str(data / "pairs.tsv"), "--workers", "0"]) == 0
    assert f"| pairs | {found[-1]['accuracy']:.4f} ± {found[-1]['accuracy_std']:.4f} |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"there is no id10/0.png below .*; give --verify-images"):
        train(replace(config, verify=(str(data / "pairs.tsv"),), verify_images=str(tmp_path)))


def test_accuracy_of_folds_is_that_of_lfw():
    """Brute force over all thresholds, on unequal numbers of pairs of a kind."""
    rng = np.random.default_rng(0)
    mated = rng.random(230) < 0.3
    similarity = rng.normal(mated * 1.0, 1.0).round(1)  # with ties
    fold = np.empty(230, int)
    for kind in (mated, ~mated):
        fold[kind] = np.arange(kind.sum()) * 10 // kind.sum()

    def accuracy(threshold, rows):
        accepted = similarity[rows] >= threshold
        return (accepted[mated[rows]].mean() + (~accepted[~mated[rows]]).mean()) / 2

    found = fold_accuracies(similarity, mated)
    for test in range(10):
        others, thresholds = fold != test, np.unique(similarity)
        scores = [accuracy(threshold, others) for threshold in thresholds]
        best = thresholds[np.isclose(scores, max(scores), rtol=0, atol=1e-12)]
        assert any(math.isclose(found[test], accuracy(threshold, fold == test)) for threshold in best)
    perfect = fold_accuracies(mated.astype(float), mated)
    assert (perfect == 1).all()


def test_published_schedules():
    webface = Config()
    rates = [learning_rate(webface, epoch) for epoch in range(webface.epochs)]
    assert [epoch for epoch in range(1, 34) if rates[epoch] < rates[epoch - 1]] == [19, 27, 31]
    np.testing.assert_allclose([rates[0], rates[19], rates[31]], [0.1, 0.01, 1e-4])
    emore = Config(**PRESETS["emore"])
    rates = [learning_rate(emore, epoch) for epoch in range(emore.epochs)]
    assert [epoch for epoch in range(1, 18) if rates[epoch] < rates[epoch - 1]] == [7, 13]
    assert learning_rate(replace(webface, batch_size=128), 0) == 0.025
    small = Config(**PRESETS["small"])
    rates = [learning_rate(small, epoch / 10) for epoch in range(10 * small.epochs)]
    assert np.argmax(rates) == 10 * small.warm_up
    assert rates[-1] < rates[10] / 1000


def save_gradients(rank: int, count: int, settings: dict, path: str) -> None:
    """The gradients of one batch, in eval mode, as process `rank` has them."""
    join(rank, count, Path(f"{path}.store"))
    run, identities = start(Config(**settings))
    run.backbone.eval()
    batch = next(identities.images.batches(run.config.batch_size, seed=(0,)))
    assert len(batch.images) == len(processes.share(batch.rows))
    train_step(run, identities, batch, 0.01)
    kernel = {"kernel": run.header.kernel.detach().contiguous(), "variance": run.variance.nan_to_num()}
    save_file({**kernel, **{k: w.grad.contiguous() for k, w in run.backbone.named_parameters()}}, f"{path}.{rank}")
    leave(count)


@pytest.mark.parametrize("rate", [1.0, 0.8])
def test_two_processes_step_as_one(data, tmp_path, rate):
    """A batch of 13 in shares of 7 and 6, with all classes and with some."""
    config = tiny(data, tmp_path, batch_size=13, sample_rate=rate, variance_floor=0.5)
    settings = {name: getattr(config, name) for name in Config.__dataclass_fields__}
    save_gradients(0, 1, settings, str(tmp_path / "one"))
    torch.multiprocessing.spawn(save_gradients, (2, settings, str(tmp_path / "two")), nprocs=2)
    one, first, second = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert same_tensors(first, second)
    for name, gradient in one.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_torchrun(data, tmp_path):
    arguments = ["--data", data, "--start-weights", data / "start.pth", "--batch-size", 8, "--epochs", 2, "--lr", 1.0]
    arguments += ["--device", "cpu", "--num-workers", 0, "--output"]
    done = run_training([*arguments, tmp_path], processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "4backbone.pth")]
    assert [record["step"] for record in read_log(tmp_path)] == [2, 4]
    assert load(tmp_path / "4backbone.pth").fc.out_features == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--output", ""], "--output must be a folder to write to"),
        (["--widths", "64,128"], "--widths must be four numbers of channels"),
        (["--widths", "8,16,32,64"], "--widths must be four numbers of channels, each at least 16"),
        (["--depth", "20"], "--depth must be one of 18, 34, 50, 100"),
        (["--start-weights", "nothing.pth"], "nothing.pth"),
        (["--identities", "nobody.txt"], "nobody.txt"),
        (["--teacher", "nobody.onnx"], "nobody.onnx"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(data, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["train", "--data", str(data), "--output", str(tmp_path), "--num-workers", "0",
                                     "--preset", "small", "--device", "cpu", *arguments])  # fmt: skip
    monkeypatch.setattr("command_line.keep_freed_memory", lambda: None)  # this process has other tests to run
    assert script.main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_flags_go_over_the_preset():
    config = parse_arguments(["--preset", "emore", "--epochs", "3", "--data", "a,b", "--output", "c"])
    assert config == Config(**(PRESETS["emore"] | {"epochs": 3, "data": ("a", "b"), "output": "c"}))
    assert json.dumps(PRESETS)  # what a state file keeps


def test_divergence_stops_with_advice(data, tmp_path):
    with pytest.raises(RuntimeError, match=r"diverged in epoch \d, step \d, at learning rate .* lower --lr"):
        train(tiny(data, tmp_path, lr=1e30))
