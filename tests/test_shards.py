"""Runs in shards: what --merge makes of them is the file of one run, byte for byte."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cr_fiqa_parts import tiny_network
from PIL import Image

import evaluate
import generate_labels
import inference
from faces.video import is_video
from labels.measure import part_of
from scoring.shards import shard_of
from scoring.tables import in_batches

SAMPLES = Path(__file__).parents[1] / "samples"
CPU = ["--device", "cpu", "--workers", "0", "--threads", "1"]
IMAGES = 11


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with eleven aligned pictures of two identities, one of them cut off, a linked folder and a
    tiny FR model."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(stream, "PNG")
        path = tmp_path / "faces" / f"id{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue()[: 500 if number == 4 else None])
    (tmp_path / "faces" / "id0" / "circle").symlink_to("..")
    torch.save(tiny_network().state_dict(), tmp_path / "fr.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "scores.csv": (inference.main, ["faces", "--align", "no", "--batch-size", "2", *CPU]),
    "scores.txt": (inference.main, ["faces", "--align", "no", "--batch-size", "2", *CPU]),
    "labels.tsv": (generate_labels.main, ["--data", "faces", "--fr", "fr.pth", "--batch-size", "2", *CPU]),
    "embeddings.npz": (
        evaluate.main,
        ["embed", "faces", "--fr", "fr.pth", "--align", "no", "--batch-size", "2", *CPU],
    ),
}


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_item_is_in_one_part_of_whole_batches(count: int) -> None:
    items = [str(number) for number in range(IMAGES)]
    parts = [part_of(items, (number, count), 2) for number in range(1, count + 1)]
    assert [item for part in parts for item in part] == items
    assert all(len(part) % 2 == 0 for part in parts[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_videos_and_pictures_come_into_the_batches_of_one_run(count: int) -> None:
    paths = [*"abc", "v.mp4", *"defgh", "w.mp4", "w.mp4", "x.mp4"]
    parts = [shard_of(paths, (number, count), 2, is_video) for number in range(1, count + 1)]
    assert [path for part in parts for path in part] == paths
    batches = [list(in_batches(part, 2, is_video)) for part in parts]
    assert [batch for part in batches for batch in part] == list(in_batches(paths, 2, is_video))
    assert max(map(len, batches)) <= min(map(len, batches)) + 1


@pytest.mark.parametrize("name", COMMANDS)
def test_merged_shards_are_the_file_of_one_run(folder: Path, name: str) -> None:
    main, arguments = COMMANDS[name]
    codes = [main([*arguments, "--output", f"one/{name}"])]
    count = 3 if name == "scores.csv" else 8   # of six batches: two shards have nothing to do
    for number in [3, *(other for other in range(1, count + 1) if other != 3)]:
        codes.append(main([*arguments, "--output", f"two/{name}", "--shard", f"{number}/{count}"]))
    assert not (folder / "two" / name).exists()
    codes.append(main([*arguments, "--output", f"two/{name}", "--merge", str(count)]))
    assert codes[0] == codes[-1] == 1, "one picture is cut off"
    one, two = (sorted(os.listdir(folder / run)) for run in ("one", "two"))
    assert one == two, "nothing of the shards is left"
    for file in one:
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes(), file


@pytest.mark.parametrize("name", ["scores.csv", "labels.tsv", "embeddings.npz"])
def test_a_missing_shard_and_other_settings(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments = COMMANDS[name]
    output = ["--output", f"out/{name}"]
    assert main([*arguments, *output, "--shard", "1/2"]) in (0, 1)
    assert main([*arguments, *output, "--merge", "2"]) == 2
    assert "--shard 2/2" in capsys.readouterr().err
    other = [argument if argument != "2" else "3" for argument in arguments]
    assert main([*other, *output, "--shard", "2/2"]) in (0, 1)
    assert main([*arguments, *output, "--merge", "2"]) == 2
    assert "batch_size" in capsys.readouterr().err


def test_shards_of_videos_and_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos are shared out, and their frames count as rows of one path."""
    pytest.importorskip("av")
    from test_video import write_video

    face = np.asarray(Image.open(SAMPLES / "astronaut.png").convert("RGB").resize((160, 160)))
    for name in ("v.mkv", "w.mkv", "x.mkv"):
        write_video(folder / name, [face, face])
    (folder / "y.mkv").write_text("no video")
    images = sorted(str(path) for path in (folder / "faces").rglob("*.png"))
    inputs = ["v.mkv", *images[:5], "w.mkv", "w.mkv", *images[5:8], "x.mkv", "y.mkv"]
    call = [*inputs, "--batch-size", "2", *CPU, "--output"]
    assert inference.main([*call, "one.csv"]) == 1
    counts = []
    for number in (2, 1, 3):
        assert inference.main([*call, "two.csv", "--shard", f"{number}/3"]) in (0, 1)
        rows = (folder / f"two.csv.{number}-of-3.jsonl").read_text().splitlines()
        counts.append(len({json.loads(row)["path"] for row in rows}))
    assert inference.main([*call, "two.csv", "--merge", "3"]) == 1
    assert (folder / "one.csv").read_bytes() == (folder / "two.csv").read_bytes()
    assert min(counts) > 1


def test_other_images_do_not_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = COMMANDS["scores.csv"][1]
    assert inference.main([*arguments, "--output", "out.csv", "--shard", "1/1"]) == 1
    (folder / "faces" / "id0" / "0.png").unlink()
    assert inference.main([*arguments, "--output", "out.csv", "--merge", "1"]) == 2
    assert "cannot merge: line 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_shards_that_do_not_exist(text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.main(["x.jpg", "--output", "a.csv", "--shard", text])
