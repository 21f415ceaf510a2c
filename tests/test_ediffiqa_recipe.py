"""The recipe of the shipped eDifFIQA-T: its faces, and the mean of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.scores import read_scores, write_scores
from faces.listing import list_images
from model import load
from model.checkpoint import save_checkpoint, sha256_of
from model.ediffiqa import EDifFIQA
from model.face_trunk import FaceTrunk
from recipes.ediffiqa_t import fit_head, make_faces, mean_ranks


def data_folder(folder: Path) -> Path:
    """A training identity of four crops, one of two, and a test identity of four."""
    (folder / "splits").mkdir(parents=True)
    (folder / "splits" / "lfw_train_identities.txt").write_text("Many\nFew\n")
    (folder / "splits" / "lfw_test_identities.txt").write_text("Test\n")
    rng = np.random.default_rng(0)
    for name, count in (("Many", 4), ("Few", 2), ("Test", 4)):
        (folder / "faces" / "lfw" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "faces" / "lfw" / name / f"{name}_{index}.png")
    return folder


def test_faces_are_of_training_identities_with_enough_images(tmp_path: Path) -> None:
    call = ["--data", str(data_folder(tmp_path / "data")), "--min-images", "3", "--most", "2", "--copies", "1"]
    for output in ("a", "b"):
        assert make_faces.main([*call, "--output", str(tmp_path / output)]) == 0
    found = [path.relative_to(tmp_path / "a").as_posix() for path in list_images(tmp_path / "a")]
    assert sorted(found) == [f"Many/Many_{i}{kind}.png" for i in (0, 1) for kind in ("", "~1")]
    for name in found:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    original = tmp_path / "data" / "faces" / "lfw" / "Many" / "Many_0.png"
    assert (tmp_path / "a" / "Many" / "Many_0.png").read_bytes() == original.read_bytes()
    assert (tmp_path / "a" / "Many" / "Many_0~1.png").read_bytes() != original.read_bytes()


def test_too_few_images_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--data", str(data_folder(tmp_path / "data")), "--output", str(tmp_path / "a"), "--min-images", "5"]
    assert make_faces.main(call) == 2
    assert "no training identity" in capsys.readouterr().err


def test_mean_of_ranks() -> None:
    found = mean_ranks.mean_ranks([np.array([0.1, 5.0, 0.3]), np.array([2.0, 2.0, 9.0])])
    np.testing.assert_allclose(found, [0.125, 0.625, 0.75])  # ranks 0, 2, 1 and 0.5, 0.5, 2


def test_tables_are_joined_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, output = (tmp_path / name for name in ("a.csv", "b.csv", "mean.csv"))
    write_scores(first, [("x/1.jpg", "ok", 0.1), ("x/2.jpg", "ok", 0.2), ("x/3.jpg", "ok", 0.3)])
    write_scores(second, [(f"data/x/{i}.jpg", "ok", -float(i)) for i in (3, 2, 1)])
    assert mean_ranks.main([str(first), str(second), "--output", str(output)]) == 0
    assert read_scores(output) == {"x/1.jpg": 0.5, "x/2.jpg": 0.5, "x/3.jpg": 0.5}
    write_scores(second, [("x/1.jpg", "ok", 1.0)])
    assert mean_ranks.main([str(first), str(second), "--output", str(output)]) == 2
    assert "x/2.jpg" in capsys.readouterr().err


def test_the_head_learns_the_scores_and_leaves_the_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    backbone = FaceTrunk(stem=16, last=32, output_dim=8, image_size=32)
    save_checkpoint(tmp_path / "fr.safetensors", backbone.state_dict(), {"system": "face-trunk"})
    features = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    names = np.array([f"x/{i}.jpg" for i in range(200)])
    sha256 = sha256_of(tmp_path / "fr.safetensors")
    np.savez(tmp_path / "e.npz", names=names, embeddings=features, model_sha256=np.array(sha256))
    labels = 1 / (1 + np.exp(-features[:, 0]))
    write_scores(tmp_path / "scores.csv", [(n, "ok", q) for n, q in zip(names.tolist(), labels.tolist(), strict=True)])
    files = {"backbone": "fr.safetensors", "embeddings": "e.npz", "scores": "scores.csv", "output": "t.safetensors"}
    call = [word for flag, file in files.items() for word in (f"--{flag}", str(tmp_path / file))]
    assert fit_head.main([*call, "--mlp-width", "32", "--steps", "300"]) == 0
    assert "180 images train" in capsys.readouterr().out
    network = load(tmp_path / "t.safetensors")
    assert isinstance(network, EDifFIQA)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(network.base_model.state_dict()[key], tensor)
    with torch.no_grad():
        found = network.mlp(torch.from_numpy(features))[:, 0].numpy()
    assert np.abs(found - labels).mean() < 0.5 * np.abs(labels.mean() - labels).mean()
    np.savez(tmp_path / "e.npz", names=names, embeddings=features, model_sha256=np.array("0" * 64))
    assert fit_head.main(call) == 2
    assert "was not made by" in capsys.readouterr().err
