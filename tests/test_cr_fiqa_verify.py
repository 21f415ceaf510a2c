"""The command line of methods.cr_fiqa.verify: what it says before it prints a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cr_fiqa_parts import tiny_network
from PIL import Image

from methods.cr_fiqa.verify import main


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.save(tiny_network(quality_head=False).state_dict(), tmp_path / "backbone.pth")
    return str(tmp_path / "backbone.pth")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Four identities of five pictures, in a folder beside the one of the pair list."""
    rng = np.random.default_rng(0)
    for identity in range(4):
        for number in range(5):
            path = tmp_path / f"faces/{identity}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8)).save(path)
    return tmp_path / "faces"


def pair_list(folder: Path, name: str, missing: str = "") -> str:
    rows = [f"{i}/{a}.png\t{i}/{b}.png\t1" for i in range(4) for a in range(5) for b in range(a)]
    rows += [f"{i}/{a}.png\t{(i + 1) % 4}/{a}.png\t0" for i in range(4) for a in range(5)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([*rows, *([f"{missing}\t0/0.png\t0"] if missing else [])]))
    return str(folder / name)


def test_everything_is_checked_before_the_table(
    model: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = pair_list(faces, "good.tsv")
    (tmp_path / "few.tsv").write_text("0/0.png\t0/1.png\t1\n")
    problems = {
        pair_list(tmp_path / "lists/of/pairs", "far.tsv"): "give --images",
        pair_list(faces, "missing.tsv", missing="9/9.png"): "1 of 21 images do not exist, for example ",
        str(tmp_path / "few.tsv"): "1 mated and 0 non-mated pairs; at least 10 of each",
        str(tmp_path / "none.tsv"): "none.tsv",
    }
    for bad, message in problems.items():
        assert main([model, good, bad, "--workers", "0"]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert message in output.err
        assert "--verify" not in output.err
        assert output.err.count("\n") == 1


def test_images_tells_where_the_names_start(
    model: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = [pair_list(tmp_path / "lists", name) for name in ("one.tsv", "two.tsv")]
    assert main([model, *lists, "--images", str(faces), "--workers", "0"]) == 0
    header, line, one, two = capsys.readouterr().out.splitlines()
    assert header.startswith("| backbone.pth | accuracy | tmr@0.01")
    assert set(line) == set("|-")
    assert one.replace("one", "two") == two
