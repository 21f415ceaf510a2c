"""inference.py with CR-FIQA: a quality without reasons, the method from the weights, and its published lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from recipe_tensors import recipe_tensors, relative_error, save_tiny_clib_fiqa

import inference
from evaluation.scores import read_scores
from model.fast import accelerate
from model.iresnet import ArcFaceHeader, IResNet
from model.prompts import FACTORS
from scoring import Scorer


@pytest.fixture(scope="module")
def network() -> IResNet:
    """A narrow IResNet with a quality head, of two blocks in a stage, and with norms that are not the identity."""
    torch.manual_seed(0)
    network = IResNet((2, 1, 1, 2), (4, 8, 8, 8), 16, dropout=0.4)
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(4, 3, 112, 112) * 2 - 1)
    return network.eval()


@pytest.fixture(scope="module")
def backbone(network: IResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As CR-FIQA's training writes it."""
    path = tmp_path_factory.mktemp("weights") / "7backbone.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five aligned crops and one damaged file."""
    folder = tmp_path_factory.mktemp("faces")
    for seed in range(5):
        Image.fromarray(recipe.mirror_image(seed)).save(folder / f"{seed} a.png")
    (folder / "5.png").write_bytes((folder / "0 a.png").read_bytes()[:3000])
    return folder


@torch.no_grad()
def qualities(network: IResNet, channels: slice = slice(None)) -> list[float]:
    """Of the five crops, by the plain network."""
    crops = np.stack([recipe.mirror_image(seed)[..., channels] for seed in range(5)])
    return network(network.preprocessing.normalise(torch.from_numpy(crops)).contiguous())[1][:, 0].tolist()


def test_one_image_prints_its_quality(
    faces: Path, backbone: Path, network: IResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inference.main([str(faces / "0 a.png"), "--weights", str(backbone)]) == 0
    assert capsys.readouterr().out == f"quality prediction = {qualities(network)[0]:.4f}\n"


def test_a_map_needs_no_factors(backbone: Path, faces: Path) -> None:
    scorer = Scorer(backbone, device="cpu")
    face = sorted(faces.glob("*.png"))[0]
    found = scorer.region_map(face)
    assert found.value == pytest.approx(scorer.score(face).quality, rel=1e-4)
    assert np.abs(found.effect).max() > 0
    with pytest.raises(ValueError, match="cr-fiqa has no axis 'blur': expected one of quality"):
        scorer.region_map(face, "blur")


def test_tables_hold_the_quality_alone(faces: Path, backbone: Path, network: IResNet, tmp_path: Path) -> None:
    arguments = [str(faces), "--weights", str(backbone), "--batch-size", "2", "--output"]
    assert inference.main([*arguments, str(tmp_path / "scores.csv")]) == 1
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == ["path", "status", "quality", *FACTORS]
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["truncated"]
    assert not any(row[factor] for row in rows for factor in FACTORS)
    found = [float(row["quality"]) for row in rows if row["status"] == "ok"]
    assert found == pytest.approx(qualities(network), rel=1e-4)
    assert len(set(found)) == 5

    assert inference.main([*arguments, str(tmp_path / "scores.jsonl")]) == 1
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert all(line["factors"] is line["quality_distribution"] is None for line in lines)


def test_published_lines_are_read_again(faces: Path, backbone: Path, network: IResNet, tmp_path: Path) -> None:
    """A list of paths in, lines with the same paths out, as often as the list has them; failures beside them."""
    names = ["1 a.png", "5.png", "0 a.png", "1 a.png"]
    (tmp_path / "image_path_list.txt").write_text("".join(f"{faces / name}\n" for name in names))
    arguments = [f"@{tmp_path / 'image_path_list.txt'}", "--weights", str(backbone)]
    output = tmp_path / "CRFIQA.txt"
    for _ in range(2):   # a second run replaces the lines, it does not add to them
        assert inference.main([*arguments, "--output", str(output)]) == 1
    lines = [line.rsplit(" ", 1) for line in output.read_text().splitlines()]
    assert [path for path, _ in lines] == [str(faces / name) for name in names if name != "5.png"]
    expected = qualities(network)
    assert [float(score) for _, score in lines] == pytest.approx([expected[1], expected[0], expected[1]], rel=1e-4)
    assert Path(f"{output}.skipped.tsv").read_text() == f"path\tstatus\n{faces / '5.png'}\ttruncated\n"
    assert set(read_scores(output)) == {str(faces / "0 a.png"), str(faces / "1 a.png")}


def test_swapped_channels_are_put_right(backbone: Path, network: IResNet, tmp_path: Path) -> None:
    """Files of the published layout, whose red and blue have changed places, score as the faces that they are of."""
    for seed in range(5):
        Image.fromarray(np.ascontiguousarray(recipe.mirror_image(seed)[..., ::-1])).save(tmp_path / f"{seed}.png")
    paths = [str(tmp_path / f"{seed}.png") for seed in range(5)]
    output = tmp_path / "scores.txt"
    arguments = [*paths, "--weights", str(backbone), "--output", str(output)]
    assert inference.main([*arguments, "--swapped-channels"]) == 0
    right = list(read_scores(output).values())
    assert right == pytest.approx(qualities(network), rel=1e-4)
    assert inference.main(arguments) == 0
    wrong = list(read_scores(output).values())
    assert wrong == pytest.approx(qualities(network, slice(None, None, -1)), rel=1e-4)
    assert min(abs(a - b) for a, b in zip(right, wrong, strict=True)) > 1e-4
    scorer = Scorer(weights=backbone, swapped_channels=True)
    assert [score.quality for score in scorer.stream(paths)] == pytest.approx(right, rel=1e-5)
    assert scorer.settings != Scorer(weights=backbone).settings


def test_the_method_is_that_of_the_weights(
    backbone: Path, faces: Path, tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Scorer(weights=backbone).method == "cr-fiqa"
    clib_fiqa = save_tiny_clib_fiqa(tmp_path / "tiny.safetensors", golden)
    assert Scorer(weights=clib_fiqa).method == "clib-fiqa"
    for method, weights, right in (("clib-fiqa", backbone, "cr-fiqa"), ("cr-fiqa", clib_fiqa, "clib-fiqa")):
        assert inference.main([str(faces), "--method", method, "--weights", str(weights)]) == 2
        assert f"{weights} is a checkpoint of" in (message := capsys.readouterr().err)
        assert f"use the method {right}" in message
    header = tmp_path / "7header.pth"
    torch.save(ArcFaceHeader(16, 3).state_dict(), header)
    assert inference.main([str(faces), "--weights", str(header)]) == 2
    assert "is a checkpoint of ArcFaceHeader: no method of" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [1, 5])
def test_fast_network_is_the_plain_one(network: IResNet, batch: int) -> None:
    images = torch.randn(batch, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fast = accelerate(IResNet.from_tensors(network.state_dict()), torch.float32, torch.device("cpu"))
        found = [fast(images.contiguous(memory_format=torch.channels_last)) for _ in range(2)]
        expected = network(images)
    assert torch.equal(found[0][0], found[1][0]), "the second call runs on packed weights, and on its own memory"
    assert relative_error(found[0][0], expected[0]) < 1e-5
    assert relative_error(found[0][1], expected[1]) < 1e-4


def test_published_quality_at_full_size(golden: Path, tmp_path: Path) -> None:
    """IResNet-50 with the recipe's weights through the scorer, on the images of the golden file."""
    numbers = np.load(golden / "iresnet50_forward.npz")
    torch.save(recipe_tensors(golden / "iresnet50_qs_keys.json"), tmp_path / "32572backbone.pth")
    scores = Scorer("cr-fiqa", tmp_path / "32572backbone.pth", device="cpu").score(list(numbers["images"]))
    assert [score.quality for score in scores] == pytest.approx(numbers["quality"][:, 0].tolist(), rel=2e-4)
