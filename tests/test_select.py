"""Selecting rows of a table, and copying the selected files: by rule, by share, by group, and never outside."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import recipe
from PIL import Image

import inference
from evaluation.threshold import pick_threshold
from faces.listing import expand_inputs
from model.files import filling_folder
from model.percentiles import discard_threshold
from scoring import Score
from scoring.select import (
    Selection,
    best_rows,
    check_new,
    check_outside,
    copy_files,
    marker,
    parts_of,
    places,
    read_keep,
    shared_start,
)
from scoring.tables import Row, row_of


def row(path: str, quality: float | None, pose: str = "frontal", band: str = "medium") -> Row:
    factors = {"pose": {level: float(level == pose) for level in ("profile", "slight angle", "frontal")}}
    status = "no_face" if quality is None else "ok"
    return row_of(Score(path, status, quality, {} if quality is None else factors, None, 50.0, band))


ROWS = [
    row("x/Ann/1.png", 0.5),
    row("x/Ann/2.png", 0.7, "profile"),
    row("y/Ann/1.png", 0.6, "slight angle", "high"),
    row("y/Bob/1.png", None),
    row("y/Bob/2.png", 0.3, band="low"),
    row("y/Bob/3.png", 0.3, band="low"),
]


def selected(selection: Selection, rows: list[Row] = ROWS) -> list[int]:
    marked = list(marker(selection, lambda: iter(rows))(rows))
    assert [one["path"] for one in marked] == [one["path"] for one in rows]
    return [number for number, one in enumerate(marked) if one["selected"]]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [0, 1, 2, 4, 5]),
        (Selection(min_score=0.5), [0, 1, 2]),
        (Selection(min_band="medium"), [0, 1, 2]),
        (Selection(min_band="high"), [2]),
        (Selection(min_percentile=50.0), [0, 1, 2, 4, 5]),
        (Selection(min_percentile=50.1), []),
        (Selection(keep={"pose": ("frontal", "slight angle")}), [0, 2, 4, 5]),
        (Selection(discard=0.0), [0, 1, 2, 4, 5]),
        (Selection(discard=0.4), [0, 1, 2]),
        (Selection(discard=0.3), [0, 1, 2, 4, 5]),  # one of five, and the two worst are equal
        (Selection(best_per=("folder", 1)), [1, 2, 4]),
        (Selection(best_per=("identity", 1)), [1, 4]),
        (Selection(best_per=("identity", 2)), [1, 2, 4, 5]),
        (Selection(keep={"pose": ("frontal",)}, best_per=("identity", 1)), [0, 4]),
        (Selection(min_score=0.55, discard=0.8), [1]),
    ],
)
def test_which_rows_are_selected(selection: Selection, expected: list[int]) -> None:
    assert selected(selection) == expected
    assert bool(selection) == (selection != Selection())


def test_a_share_is_the_one_of_evaluate_threshold() -> None:
    quality = np.random.default_rng(0).random(257)
    for share in (0.0, 0.1, 0.29, 0.999):
        assert discard_threshold(quality, share) == pick_threshold(quality, share).value
    assert discard_threshold(np.array([]), 0.1) == -np.inf


@pytest.mark.parametrize("group", ["folder", "identity"])
def test_a_folder_is_one_group_however_it_is_written(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    paths = ["1.png", "./2.png", "../x/3.png", f"{tmp_path}/x/4.png", f"{tmp_path}//x/5.png"]
    assert selected(Selection(best_per=(group, 1)), [row(path, 0.5 + i / 10) for i, path in enumerate(paths)]) == [4]
    assert len(selected(Selection(best_per=("folder", 1)), [row("Ann/1.png", 0.5), row("../Ann/1.png", 0.5)])) == 2


def test_of_each_group_only_the_best_are_held() -> None:
    rows = (row(f"{i % 3}/{i}.png", (i * 7919 % 1000) / 1000) for i in range(3000))
    kept = best_rows(rows, lambda _: True, "folder", 2)
    assert len(kept) == 6
    assert all((number * 7919 % 1000) / 1000 >= 0.99 for number in kept)


def test_levels_are_those_of_the_factor() -> None:
    assert read_keep("pose=frontal, slight angle") == ("pose", ("frontal", "slight angle"))
    for wrong, message in (
        ("size=big", "with a factor of blur, occlusion"),
        ("pose", "pose has no level ''"),
        ("pose=upside down", "its levels are profile, slight angle, frontal"),
        ("quality=good", "with a factor of"),
    ):
        with pytest.raises(ValueError, match=message):
            read_keep(wrong)


def test_parts_lead_nowhere_else() -> None:
    assert parts_of("/etc/../../a/./b.png") == ("etc", "a", "b.png")
    assert parts_of("../..") == ("image",)
    assert shared_start(iter([("a", "b"), ("a", "c"), ("a", "b", "d")])) == 1
    assert shared_start([("a",), ("b",), ("b",)]) == 0, "nothing that was lost comes back"
    assert shared_start(iter([])) == 0


def test_copies_keep_sub_folders_and_names_never_collide(tmp_path: Path) -> None:
    for index, name in enumerate(["p/a/1.png", "p/b/1.png", "q/a/1.png", "p/a/with\nline end.png", "p/a/-rf.png"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(str(index))
    folder = tmp_path / "new" / "out"
    given = [
        f"{tmp_path}/in/p/a/1.png",
        f"{tmp_path}/in/p/b/1.png",
        f"{tmp_path}/in/../in/p/a/1.png",
        f"{tmp_path}/in/p/a/with\nline end.png",
        f"{tmp_path}/in/p/a/-rf.png",
    ]
    folder.parent.mkdir()
    with filling_folder(folder) as temporary:
        assert copy_files(lambda: iter(given), temporary) == 5
    below = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert below == ["in/p/a/1.png", "p/a/-rf.png", "p/a/1.png", "p/a/with\nline end.png", "p/b/1.png"]
    assert (folder / "p/a/1.png").read_text() == "0"
    assert [path.name for path in folder.parent.iterdir()] == ["out"], "nothing is left beside it"

    twice = [f"{tmp_path}/in/p/a/1.png", f"./{os.path.relpath(tmp_path / 'in/p/a/1.png')}", "/../in/p/a/1.png"]
    for path, target in places(lambda: iter(twice), tmp_path / "twice"):
        target.write_text(path)
        assert target.resolve().is_relative_to(tmp_path / "twice")
    assert len([path for path in (tmp_path / "twice").rglob("*") if path.is_file()]) == 3


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    found = []
    for _, target in places(lambda: iter(["a/1.png", "a/../a/1.png", "./a/1.png", "a/1.png/2.png"]), tmp_path):
        target.write_text("")
        found.append(target.relative_to(tmp_path).as_posix())
    assert found == ["1.png", "a/1.png", "1~2.png", "1.png~2.png"]


def test_copies_from_parquet_are_images_of_their_format(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    contents = []
    for kind in ("PNG", "JPEG", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(recipe.mirror_image(1)).save(stream, kind)
        contents.append(stream.getvalue())
    parquet.write_table(pyarrow.table({"image": contents}), tmp_path / "faces.parquet")
    best = tmp_path / "best"
    assert run(tmp_path / "faces.parquet", "--min-score", "0", "--copy-to", best, weights=weights) == 0
    assert copied(best) == ["0.png", "1.jpg", "2.webp"]
    assert [(best / name).read_bytes() for name in copied(best)] == contents
    assert run(best, weights=weights) == 0
    assert "3 ok" in capsys.readouterr().err


def test_copying_is_all_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("1")
    folder = tmp_path / "out"
    gone = pytest.raises(RuntimeError, match=r"2\.png was scored, and is not there any more: nothing was copied")
    with gone, filling_folder(folder) as temporary:
        copy_files(lambda: iter([str(tmp_path / "1.png"), str(tmp_path / "2.png")]), temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    folder.mkdir()
    with filling_folder(folder) as temporary:
        assert copy_files(lambda: iter([str(tmp_path / "1.png")]), temporary) == 1
    with pytest.raises(OSError), filling_folder(folder) as temporary:  # noqa: PT011
        (temporary / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "out"]


def test_a_folder_that_is_filled_is_new_and_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    check_new(tmp_path / "out")
    check_new(tmp_path / "in")
    check_outside(tmp_path / "out", [str(tmp_path / "in")])
    with pytest.raises(ValueError, match="would be images of"):
        check_outside(tmp_path / "in" / "best", [str(tmp_path / "in")])
    (tmp_path / "in" / "x").touch()
    for folder in (tmp_path / "in", tmp_path / "in" / "x"):
        with pytest.raises(ValueError, match="is not empty"):
            check_new(folder)


@pytest.mark.parametrize(
    ("pattern", "is_read"),
    [
        ("in/*", True),           # the folder itself
        ("in/**", True),
        ("*", True),
        ("i?/b*/*.png", True),    # what lies in it
        ("in/best/*.png", True),
        ("./in/../in/*", True),
        ("in/*.png", False),
        ("*.png", False),
        ("out/**", False),
        ("*/other/*.png", False),
        ("**/*.png", True),
        ("in/a/**", False),
    ],
)
def test_copies_lie_outside_of_what_a_pattern_reads(
    pattern: str, is_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "best").mkdir(parents=True)
    (tmp_path / "in" / "best" / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    assert (str(Path("in/best/1.png")) in map(os.path.normpath, expand_inputs([pattern], []))) == is_read
    for folder in (Path("in/best"), tmp_path / "in" / "best"):
        if is_read:
            with pytest.raises(ValueError, match=r"the files in .*best would be images of"):
                check_outside(folder, [pattern])
        else:
            check_outside(folder, [pattern])


def test_copies_may_go_where_a_link_to_an_empty_folder_leads(faces: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run(faces / "b", "--min-score", "0", "--copy-to", tmp_path / "link", weights=weights) == 0
    assert (tmp_path / "link").is_symlink()
    assert len(copied(tmp_path / "real")) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--copy-to", "."], ". is the current folder: name a new folder"),
        (["--copy-to", "mount"], "mount is a mount point: name a new folder in it"),
        (["--copy-to", "new", "--output", "new/scores.csv"], "new/scores.csv lies in new"),
        (["--copy-to", "new", "--map", "new/maps"], "new/maps lies in new"),
        (["--copy-to", "file/new"], "file"),
        (["--map", "file"], "file is no folder"),
        (["--map", "file/maps"], "file"),
        (["--copy-to", "/proc/nope/new"], "/proc/nope"),
    ],
)
def test_a_folder_that_cannot_be_filled_is_said_before_scoring(
    flags: list[str], message: str, faces: Path, weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    if "." not in flags:
        (here / "mount").mkdir()
        (here / "file").touch()
    monkeypatch.chdir(here)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "mount")
    monkeypatch.setattr("scoring.run.score_images", lambda *arguments: pytest.fail("it was scored"))
    before = sorted(here.iterdir())
    assert run(faces, *flags, weights=weights) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(here.iterdir()) == before


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for seed in range(9):
        (folder / "abc"[seed % 3]).mkdir(exist_ok=True)
        Image.fromarray(recipe.mirror_image(seed)).save(folder / "abc"[seed % 3] / f"{seed}.png")
    (folder / "a" / "bad.png").write_text("no picture")
    return folder


def run(*arguments: str | Path, weights: Path) -> int:
    return inference.main([*map(str, arguments), "--weights", str(weights), "--workers", "0"])


def rows_in(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def copied(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_best_of_each_folder_are_copied_and_all_rows_are_told(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, best = tmp_path / "all.csv", tmp_path / "best"
    assert run(faces, "--output", output, "--copy-to", best, "--best-per", "folder", "2", weights=weights) == 1
    rows = rows_in(output)
    assert len(rows) == 10
    assert list(rows[0])[-1] == "selected"
    for name in "abc":
        group = [one for one in rows if f"/{name}/" in one["path"] and one["status"] == "ok"]
        wanted = sorted(group, key=lambda one: float(one["quality"]), reverse=True)[:2]
        assert {one["path"] for one in group if one["selected"] == "1"} == {one["path"] for one in wanted}
    assert next(one for one in rows if one["status"] != "ok")["selected"] == "0"
    names = [f"{Path(one['path']).parent.name}/{Path(one['path']).name}" for one in rows if one["selected"] == "1"]
    assert copied(best) == sorted(names)
    assert (best / names[0]).read_bytes() == (faces / names[0]).read_bytes()
    assert "6 selected\n6 files -> " in capsys.readouterr().err
    assert run(faces, "--output", output, "--copy-to", best, weights=weights) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "txt"])
def test_every_format_tells_what_is_selected(suffix: str, faces: Path, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / f"scores.{suffix}"
    assert run(faces, "--output", output, "--discard", "0.5", weights=weights) == 1
    if suffix == "txt":
        assert len(output.read_text().splitlines()) == 5
        skipped = (tmp_path / "scores.txt.skipped.tsv").read_text().splitlines()[1:]
        assert sorted(line.split("\t")[1] for line in skipped) == ["not_an_image", *["not_selected"] * 4]
        return
    if suffix == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(output).to_pylist()
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    ranked = sorted((one for one in rows if one["quality"] is not None), key=lambda one: one["quality"])
    assert [one["selected"] for one in ranked] == [False] * 4 + [True] * 5


def test_without_a_table_it_is_printed(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(faces, "--min-score", "0.9", weights=weights) == 1
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["selected", "path"]
    assert [line.split()[-2] for line in lines] == ["no"] * 10
    call = [faces, "--min-score", "0", "--copy-to", tmp_path / "good", "--discard", "0.5"]
    assert run(*call, weights=weights) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == header
    assert sum(line.split()[-2] == "yes" for line in printed) == 5
    assert len(copied(tmp_path / "good")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def test_one_image_says_whether_it_is_selected(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face = faces / "a" / "0.png"
    for least, answer, files in (("0", "yes", ["0.png"]), ("0.95", "no", [])):
        assert run(face, "--min-score", least, "--copy-to", tmp_path / answer, weights=weights) == 0
        assert f"selected: {answer}" in capsys.readouterr().out.splitlines()
        assert copied(tmp_path / answer) == files


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-band", "high"], "has no measured bands; give --bands FILE"),
        (["--min-percentile", "10"], "holds no percentiles"),
        (["--keep", "pose=backwards"], "pose has no level 'backwards'"),
        (["--best-per", "planet", "3"], "one of folder, identity, track, and a number from 1"),
        (["--best-per", "folder", "0"], "one of folder, identity, track, and a number from 1"),
        (["--bands", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_selected_is_said_before_scoring(
    flags: list[str], message: str, faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(faces, "--output", tmp_path / "scores.csv", *flags, weights=weights) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_vanished_loses_no_rows(
    faces: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, best = tmp_path / "scores.csv", tmp_path / "best"

    def gone(read: object, folder: Path, max_bytes: int) -> int:
        raise RuntimeError("a.png was scored, and is not there any more: nothing was copied")

    with monkeypatch.context() as patch:
        patch.setattr("scoring.run.copy_files", gone)
        assert run(faces, "--output", output, "--copy-to", best, weights=weights) == 1
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert run(faces, "--output", output, "--copy-to", best, "--resume", weights=weights) == 1
    assert len(rows_in(output)) == 10
    assert len(copied(best)) == 9


@pytest.mark.parametrize("stage", ["write_shots", "write_maps", "Journal.finish"])
def test_whatever_fails_behind_the_copies_can_be_resumed(
    stage: str, faces: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, best, maps = tmp_path / "scores.csv", tmp_path / "best", tmp_path / "maps"
    call = [faces / "b", "--output", output, "--copy-to", best, "--map", maps]

    def stopped(*arguments: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"scoring.run.{stage}", stopped)
        assert run(*call, weights=weights) == 130
    assert not best.exists()
    assert run(*call, "--resume", weights=weights) == 0
    assert (len(rows_in(output)), len(copied(best)), len(copied(maps))) == (3, 3, 9)


def test_rows_are_read_again_and_not_held() -> None:
    """Both passes take their rows one by one."""
    alive = 0

    class Counted(dict):
        def __init__(self, *values: object) -> None:
            nonlocal alive
            alive += 1
            super().__init__(*values)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Row]:
        for i in range(500):
            yield Counted(row(f"{i % 5}/{i}.png", i / 500))
            assert alive < 5

    mark = marker(Selection(discard=0.5, best_per=("folder", 3)), rows)
    assert sum(one["selected"] for one in mark(rows())) == 15
