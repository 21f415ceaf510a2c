"""A quality head for a finished CR-FIQA backbone, solved for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cr_fiqa_parts import tiny_network

from labels.anchors import EmbeddedFaces
from methods.cr_fiqa.fit_head import anchors_of, below_common_folder, main, ridge
from model.checkpoint import read_checkpoint
from model.files import only_run
from model.iresnet import IResNet

RNG = np.random.default_rng(5)


@pytest.fixture
def faces() -> EmbeddedFaces:
    """Eight identities of six photographs, each with a version that one direction, the same for all, has spoilt."""
    centres, spoilt = RNG.normal(size=(8, 512)), RNG.normal(size=512)
    rows, paths = [], []
    for identity, centre in enumerate(centres):
        for number in range(6):
            damage = RNG.uniform(0, 4)
            photograph = centre + 0.5 * RNG.normal(size=512)
            rows += [photograph, photograph + damage * spoilt]
            paths += [f"id{identity}/{number}.png", f"id{identity}/{number}~1.png"]
    return EmbeddedFaces(np.array(rows, np.float32), paths)


@pytest.fixture
def files(tmp_path: Path, faces: EmbeddedFaces) -> tuple[str, str]:
    """A backbone without a head, and embeddings."""
    torch.save(tiny_network(quality_head=False).state_dict(), tmp_path / "backbone.pth")
    np.savez(tmp_path / "faces.npz", names=[f"/x/{path}" for path in faces.paths], embeddings=faces.embeddings)
    return str(tmp_path / "backbone.pth"), str(tmp_path / "faces.npz")


def test_ridge_finds_a_linear_function_and_shrinks_to_the_mean() -> None:
    x = RNG.normal(3, 2, (400, 5))
    truth = np.array([1.0, -2.0, 0.0, 0.5, 3.0])
    weights, bias = ridge(x, x @ truth + 7, 1e-12)
    np.testing.assert_allclose(weights, truth, atol=1e-6)
    assert bias == pytest.approx(7)
    weights, bias = ridge(x, x @ truth + 7, 1e9)
    np.testing.assert_allclose(weights, 0, atol=1e-6)
    assert bias == pytest.approx((x @ truth + 7).mean(), abs=1e-4)


def test_identities_of_little_variance_do_not_teach(faces: EmbeddedFaces) -> None:
    rows = faces.embeddings.copy()
    rows[:12:2] = rows[0] + 0.01 * RNG.normal(size=(6, 512))  # the originals of id0 are nearly one picture
    anchors, teaches = anchors_of(EmbeddedFaces(rows, faces.paths), 0.5)
    assert not teaches[:12].any()
    assert teaches[12:].all()
    assert anchors[::2].mean() > anchors[1::2].mean() + 0.1  # versions are judged too


def test_the_head_tells_the_damage(
    files: tuple[str, str], tmp_path: Path, faces: EmbeddedFaces, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fitted.pth"
    assert main([*files, "--output", str(output)]) == 0
    assert "96 faces of 8 identities" in capsys.readouterr().out
    network = IResNet.from_tensors(*read_checkpoint(output))
    before = read_checkpoint(files[0])[0]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items() if key in before)
    assert network.qs is not None
    quality = network.qs(torch.from_numpy(faces.embeddings))[:, 0].detach().numpy()
    assert (quality[::2] > quality[1::2]).mean() > 0.9
    assert np.corrcoef(quality, anchors_of(faces, 0)[0])[0, 1] > 0.9


def test_wrong_calls_end_with_a_message(
    files: tuple[str, str], tmp_path: Path, faces: EmbeddedFaces, capsys: pytest.CaptureFixture[str]
) -> None:
    few, narrow, others, output = (tmp_path / name for name in ("few.npz", "narrow.npz", "others.npz", "fitted.pth"))
    np.savez(few, names=faces.paths[:24], embeddings=faces.embeddings[:24])
    assert main([files[0], str(few), "--output", str(output)]) == 2
    assert "at least 5 identities" in capsys.readouterr().err
    np.savez(narrow, names=faces.paths, embeddings=faces.embeddings[:, :64])
    assert main([files[0], str(narrow), "--output", str(output)]) == 2
    assert "qs.weight" in capsys.readouterr().err
    np.savez(others, names=faces.paths, embeddings=faces.embeddings, model_sha256="0" * 64)
    assert main([files[0], str(others), "--output", str(output)]) == 2
    assert "of another network" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*files, "--output", str(output), "--variance-floor", "1"])
    assert not output.exists()


def test_a_second_run_ends_before_the_work(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.cr_fiqa.fit_head.read_checkpoint", lambda path: pytest.fail("the work began"))
    with only_run(tmp_path / "fitted.pth"):
        assert main([*files, "--output", str(tmp_path / "fitted.pth")]) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_folders_of_one_leaf_name_are_two_identities() -> None:
    assert below_common_folder(["/d/a/x/1.jpg", "/d/b/x/1.jpg"]) == ["a/x/1.jpg", "b/x/1.jpg"]
    assert below_common_folder(["a/x/1.jpg", "b/x/1.jpg"]) == ["a/x/1.jpg", "b/x/1.jpg"]
    assert below_common_folder(["./d//a/1.jpg", "d/b/2.jpg"]) == ["a/1.jpg", "b/2.jpg"]
    with pytest.raises(ValueError, match="absolute"):
        below_common_folder(["/d/a/1.jpg", "d/b/2.jpg"])


def test_leaf_names_do_not_collide(
    files: tuple[str, str], tmp_path: Path, faces: EmbeddedFaces, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"/x/{path.split('/')[0]}/images/{Path(path).name}" for path in faces.paths]
    np.savez(files[1], names=names, embeddings=faces.embeddings)
    assert main([*files, "--output", str(tmp_path / "fitted.pth")]) == 0
    assert "96 faces of 8 identities" in capsys.readouterr().out
