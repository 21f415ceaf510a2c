"""inference.py on videos: rows with frame, time and track, and the best shots of each track."""

from __future__ import annotations

import csv
import io
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
from scoring import Score, Scorer
from scoring.run import settings_of
from scoring.tables import Row
from scoring.video import video_scores, write_shots

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


def group_and_clip(tmp_path: Path, frames: list[np.ndarray]) -> tuple[str, str]:
    """A photograph of two people, and a video of one frame with two people."""
    Image.fromarray(frames[-1]).save(tmp_path / "group.png")
    return str(tmp_path / "group.png"), str(write_video(tmp_path / "clip.mkv", frames[-1:]))


@pytest.mark.parametrize(("flags", "of_group", "of_clip"), [
    ([], 1, 2), (["--faces", "all"], 2, 2), (["--faces", "largest"], 1, 1),
])
@pytest.mark.parametrize("listed", [False, True])
def test_which_faces_count_is_chosen_for_each_path(
    frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: list[str], of_group: int, of_clip: int, listed: bool,
) -> None:
    pytest.importorskip("av")
    group, clip = group_and_clip(tmp_path, frames)
    paths = [group, group, clip]
    if listed:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(paths)))
    table = tmp_path / "scores.jsonl"
    inputs = ["-"] if listed else paths
    assert inference.main([*inputs, *flags, "--min-face-size", "60", "--output", str(table)]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row["path"] for row in rows] == [group] * (2 * of_group) + [clip] * of_clip
    several = ["several_faces" in [reason["code"] for reason in row["reasons"]] for row in rows]
    assert several == [of_group == 1] * (2 * of_group) + [of_clip == 1] * of_clip


def test_which_faces_of_videos_count_is_a_setting_of_a_run() -> None:
    scorer = Scorer()
    plain, largest = (settings_of(scorer, inference.parse(["a.mp4", *flags])) for flags in ([], ["--faces", "largest"]))
    assert plain != largest


def shot(path: str, frame: int, face: int = 0) -> Row:
    """What `write_shots` reads of a row."""
    points = [40.0, 60.0, 80.0, 60.0, 60.0, 80.0, 45.0, 100.0, 75.0, 100.0]
    return {"path": path, "frame": frame, "face": face, "track": 0, "points": points}


def folders_of_frames(*folders: Path) -> list[str]:
    """Folders with three frames each; every folder has a colour of its own."""
    for value, folder in enumerate(folders, 1):
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((128, 128, 3), 60 * value, np.uint8)).save(folder / f"{number}.png")
    return [str(folder) for folder in folders]


def test_shots_of_videos_with_one_name_stay_apart(tmp_path: Path) -> None:
    one, two = folders_of_frames(tmp_path / "a" / "cam", tmp_path / "b" / "cam")
    rows = [shot(one, 0), shot(one, 2), shot(two, 0), shot(two, 0, face=1)]
    target = tmp_path / "shots"
    target.mkdir()
    assert write_shots(rows, target, every=1, rate=25.0, max_bytes=10**6) == 4
    written = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.png"))
    names = ["a/cam_track0_frame0_face0", "a/cam_track0_frame2_face0", "b/cam_track0_frame0_face0"]
    assert written == [f"{name}.png" for name in [*names, "b/cam_track0_frame0_face1"]]
    middle = [np.asarray(Image.open(target / name))[56, 56, 0] for name in written]
    assert middle == [60, 60, 120, 120]


def test_shots_of_the_current_folder_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders_of_frames(tmp_path / "cam")
    target = tmp_path / "shots"
    target.mkdir()
    monkeypatch.chdir(tmp_path / "cam")
    assert write_shots([shot(".", 1)], target, every=1, rate=25.0, max_bytes=10**6) == 1
    assert [path.name for path in target.iterdir()] == ["cam_track0_frame1_face0.png"]


def test_a_video_that_vanished_is_said(tmp_path: Path) -> None:
    (folder,) = folders_of_frames(tmp_path / "cam")
    with pytest.raises(RuntimeError, match="cam was scored, and is not as it was any more: its shots are not written"):
        write_shots([shot(folder, 1), shot(folder, 7)], tmp_path, every=1, rate=25.0, max_bytes=10**6)


@pytest.mark.parametrize("method", ["clib-fiqa", "dsl-fiqa"])
def test_frames_that_are_taken_whole_have_no_track_and_are_written(tmp_path: Path, method: str) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    names = ("astronaut.png", "astronaut_blurred.png", "hopper_dark.png")
    for number, name in enumerate(names):
        Image.open(SAMPLES / name).convert("RGB").save(folder / f"{number}.png")
    table, shots = tmp_path / "scores.jsonl", tmp_path / "shots"
    call = [str(folder), "--frames", "5", "--method", method, "--output", str(table), "--copy-to", str(shots)]
    flags = ["--crops", "1"] if method == "dsl-fiqa" else []
    assert inference.main([*call, *flags, "--best-per", "track", "2"]) in (0, 1)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [(row["frame"], row["track"]) for row in rows] == [(0, None), (1, None), (2, None)]
    best = sorted(row["frame"] for row in sorted(rows, key=lambda row: -row["quality"])[:2])
    assert sorted(path.name for path in shots.iterdir()) == [f"crops_frame{number}.png" for number in best]
    for number in best:
        written, frame = shots / f"crops_frame{number}.png", folder / f"{number}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(written)), np.asarray(Image.open(frame)))


def test_maps_are_of_photographs(
    frames: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    group, clip = group_and_clip(tmp_path, frames)
    flags = ["--min-face-size", "60", "--output", str(tmp_path / "scores.jsonl"), "--map", str(tmp_path / "maps")]
    assert inference.main([group, clip, *flags]) == 0
    captured = capsys.readouterr().err
    assert "no map of 2 faces of videos\n1 maps -> " in captured
    assert len(list((tmp_path / "maps").glob("*.json"))) == 1
    monkeypatch.setattr("scoring.run.Scorer", lambda *arguments, **options: pytest.fail("it was scored"))
    assert inference.main([clip, *flags]) == 2
    assert capsys.readouterr().err == "error: --map is of photographs, and only videos are given\n"


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
