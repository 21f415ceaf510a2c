"""inference.py with DSL-FIQA: published files give the published score, and every picture has its row."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from dsl_fiqa_parts import SIZE, published_tensors, small_network
from PIL import Image
from recipe_tensors import recipe_tensors

import inference
from model.checkpoint import save_checkpoint


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_the_published_layout_give_the_golden_score(golden: Path, shared: Path, tmp_path: Path) -> None:
    """A picture of exactly the crop's size is scored once, so the score is that of the golden crop."""
    folder = shared / "golden" / "dsl_fiqa"
    forward, known = np.load(folder / "dslfiqa_forward.npz"), np.load(folder / "dslfiqa_landmarks.npz")
    weights, encoder = tmp_path / "IQA.pt", tmp_path / "DE.pt"
    torch.save(published_tensors(golden), weights)  # 1 GB
    torch.save(recipe_tensors(golden / "dsl_fiqa" / "dslfiqa_de_keys.json"), encoder)
    for index, (crop, corner) in enumerate(zip(forward["crops"], forward["boxes_top_left"], strict=True)):
        Image.fromarray(crop).save(tmp_path / f"{index}.png")
        np.save(tmp_path / f"{index}.npy", known["landmarks"] - corner[::-1])
    files = ["--weights", str(weights), "--degradation-encoder", str(encoder), "--landmark-folder", str(tmp_path)]
    output, pictures = tmp_path / "scores.csv", [str(tmp_path / f"{index}.png") for index in (0, 1)]
    try:
        call = ["--method", "dsl-fiqa", "--device", "cpu", "--workers", "0", "--output", str(output)]
        assert inference.main([*pictures, *files, *call]) == 0
    finally:
        weights.unlink()  # pytest keeps the folders of its last runs
    scores = [float(row["quality"]) for row in rows_of(output)]
    assert scores == pytest.approx(forward["score"].tolist(), rel=1e-5)


def test_every_picture_has_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any size and shape, and one that is no picture."""
    weights, folder = tmp_path / "small.safetensors", tmp_path / "pictures"
    save_checkpoint(weights, small_network("none").to_tensors(), {"system": "dsl-fiqa"})
    folder.mkdir()
    for index, (height, width) in enumerate([(64, 64), (64, 80), (20, 300), (1, 1), (90, 70), (33, 47), (200, 130)]):
        image = np.resize(recipe.mirror_image(index, 64), (height, width, 3))
        Image.fromarray(image).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes((folder / "5.png").read_bytes()[:200])
    call = ["--weights", str(weights), "--crops", "3", "--device", "cpu", "--workers", "0"]
    output = tmp_path / "scores.csv"
    assert inference.main([str(folder), *call, "--output", str(output)]) == 1
    rows = rows_of(output)
    assert len(rows) == 8
    assert [Path(row["path"]).name for row in rows if row["status"] != "ok"] == ["broken.jpg"]
    assert all(np.isfinite(float(row["quality"])) for row in rows if row["status"] == "ok")
    assert "1 " in capsys.readouterr().err.splitlines()[-1]
    assert SIZE == 64, "the sizes above lie around the crop's"
