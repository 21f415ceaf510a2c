"""inference.py on videos: rows with frame, time and track, and the best shots of each track."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_video import write_video

import inference
from scoring import Score
from scoring.video import video_scores

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A sharp face at the left moves right; a blurred one at the right comes after a second."""
    sharp = Image.open(SAMPLES / "astronaut.png").convert("RGB").resize((160, 160))
    blurred = Image.open(SAMPLES / "astronaut_blurred.png").convert("RGB").resize((160, 160))
    pictures = []
    for number in range(8):
        canvas = Image.new("RGB", (400, 192), (90, 100, 110))
        canvas.paste(sharp, (4 * number, 16))
        if number >= 4:
            canvas.paste(blurred, (236, 16))
        pictures.append(np.asarray(canvas))
    return pictures


@pytest.mark.parametrize("form", ["video", "folder"])
def test_each_face_of_a_video_has_its_rows_and_its_best_shots(
    frames: list[np.ndarray], tmp_path: Path, form: str
) -> None:
    if form == "video":
        pytest.importorskip("av")
        source, flags = write_video(tmp_path / "clip.mkv", frames), []
    else:
        source, flags = tmp_path / "clip", ["--frames", "25"]
        source.mkdir()
        for number, picture in enumerate(frames):
            Image.fromarray(picture).save(source / f"{number}.png")
    table, shots = tmp_path / "scores.jsonl", tmp_path / "shots"
    call = [str(source), *flags, "--every", "2", "--output", str(table), "--min-face-size", "60"]
    assert inference.main([*call, "--best-per", "track", "1", "--copy-to", str(shots)]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert {row["path"] for row in rows} == {str(source)}
    assert [row["frame"] for row in rows] == [0, 2, 4, 4, 6, 6]
    assert [row["time"] for row in rows] == pytest.approx([row["frame"] / 25 for row in rows], abs=2e-3)
    left, right = ([row for row in rows if row["track"] == track] for track in (0, 1))
    assert [row["frame"] for row in left] == [0, 2, 4, 6]
    assert [row["frame"] for row in right] == [4, 6]
    assert all(row["box"][0] < 150 for row in left)
    assert min(row["quality"] for row in left) > max(row["quality"] for row in right)
    best = [max(track, key=lambda row: row["quality"]) for track in (left, right)]
    assert [row for row in rows if row["selected"]] == sorted(best, key=lambda row: (row["frame"], row["face"]))
    names = {f"{source.name}_track{row['track']}_frame{row['frame']}_face{row['face']}.png" for row in best}
    assert {path.name for path in shots.iterdir()} == names
    assert {Image.open(path).size for path in shots.iterdir()} == {(112, 112)}


def test_a_video_behind_pictures_goes_on_where_it_was_stopped(
    frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    clip = str(write_video(tmp_path / "clip.mkv", frames))
    samples = [str(SAMPLES / name) for name in ("astronaut.png", "hopper_dark.png")]
    call = [*samples, clip, "--every", "2", "--min-face-size", "60", "--batch-size", "1", "--output"]
    assert inference.main([*call, str(tmp_path / "whole.jsonl")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("scoring.run.video_scores", stopped_after(3))
        assert inference.main([*call, str(tmp_path / "part.jsonl")]) == 130
    partial = (tmp_path / "part.jsonl.partial").read_text().splitlines()
    assert json.loads(partial[-1])["frame"] is not None
    assert inference.main([*call[:3], "--every", "4", *call[5:], str(tmp_path / "part.jsonl"), "--resume"]) == 2
    assert inference.main([*call, str(tmp_path / "part.jsonl"), "--resume"]) == 0
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_finished_videos_are_not_scored_again(
    frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the pictures between them come into other batches."""
    pytest.importorskip("av")
    clips = [str(write_video(tmp_path / f"{number}.mkv", frames[4:6])) for number in range(3)]
    samples = [str(SAMPLES / name) for name in ("astronaut.png", "hopper_dark.png", "astronaut_blurred.png")]
    call = [clips[0], *samples, *clips[1:], "--min-face-size", "60", "--batch-size", "2", "--output"]
    assert inference.main([*call, str(tmp_path / "whole.jsonl")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("scoring.run.video_scores", stopped_at(clips[2]))
        assert inference.main([*call, str(tmp_path / "part.jsonl")]) == 130
    again: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("scoring.run.video_scores", lambda *given: [again.append(given[1]), *video_scores(*given)][1:])
        assert inference.main([*call, str(tmp_path / "part.jsonl"), "--resume"]) == 0
    assert again == [clips[2]]
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def stopped_at(path: str) -> Callable[..., Iterator[Score]]:
    """`video_scores` that ends by Ctrl-C after the first row of this video."""
    return lambda *given: (stopped_after(1) if given[1] == path else video_scores)(*given)


def stopped_after(count: int) -> Callable[..., Iterator[Score]]:
    """`video_scores` that ends by Ctrl-C after so many rows."""

    def scores(*arguments: Any) -> Iterator[Score]:
        yield from islice(video_scores(*arguments), count)
        raise KeyboardInterrupt

    return scores


def test_bad_and_faceless_videos_have_a_row(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_video(tmp_path / "empty.mkv", [np.full((64, 64, 3), 90, np.uint8)] * 3)
    (tmp_path / "text.mp4").write_text("no video")
    table = tmp_path / "scores.csv"
    videos = [str(tmp_path / name) for name in ("empty.mkv", "text.mp4", "none.mp4")]
    assert inference.main([*videos, "--output", str(table)]) == 1
    with open(table, newline="") as file:
        rows = [(row["path"], row["status"], row["frame"]) for row in csv.DictReader(file)]
    assert rows == list(zip(videos, ["no_face", "not_a_video", "missing"], [""] * 3, strict=True))


def test_frames_that_cannot_be_read_have_rows(frames: list[np.ndarray], tmp_path: Path) -> None:
    """At the end of a video that is cut off, and in a folder of frames."""
    pytest.importorskip("av")
    clip = write_video(tmp_path / "clip.mkv", frames)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    folder, broken = tmp_path / "folder", tmp_path / "broken"
    for place in (folder, broken):
        place.mkdir()
        for number in range(5):
            Image.fromarray(frames[number]).save(place / f"{number}.png")
    for path in (folder / "1.png", *(broken / f"{number}.png" for number in range(5))):
        path.write_bytes(path.read_bytes()[:900])
    (folder / "3.png").write_text("no picture")
    table, flags = tmp_path / "scores.jsonl", ["--min-face-size", "60", "--batch-size", "2", "--frames", "25"]
    assert inference.main([*map(str, (clip, folder, broken)), *flags, "--output", str(table)]) == 1
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    found = {path.stem: [row for row in rows if row["path"] == str(path)] for path in (clip, folder, broken)}
    statuses = [row["status"] for row in found["clip"]]
    assert len(statuses) > 3
    assert statuses == ["ok"] * (len(statuses) - 1) + ["truncated"]
    last = found["clip"][-1]
    assert (last["frame"], last["quality"], last["face"]) == (found["clip"][-2]["frame"] + 1, None, None)
    assert [(row["frame"], row["status"]) for row in found["folder"] if row["face"] in (0, None)] == [
        (0, "ok"), (1, "truncated"), (2, "ok"), (3, "not_an_image"), (4, "ok"),
    ]  # fmt: skip
    assert found["folder"][1]["time"] == 0.04
    assert [(row["frame"], row["status"]) for row in found["broken"]] == [(n, "truncated") for n in range(5)]
