"""Tables of scores: every format holds the same rows, whole or not at all, and an interrupted run goes on."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import recipe
from PIL import Image

from faces.video import is_video
from model.files import open_text
from model.prompts import AXES, FACTORS
from scoring import Score, Scorer
from scoring.reasons import ADVICE, Reason
from scoring.tables import (
    ADDED,
    COLUMNS,
    FACE_COLUMNS,
    FORMATS,
    Journal,
    check_table_name,
    in_batches,
    readable_header,
    readable_row,
    row_of,
)

SETTINGS = {"method": "clib-fiqa", "precision": "fp32"}


def score_of(path: str, quality: float = 0.61803398) -> Score:
    factors = {axis: {level: (i + 0.5) ** 2 for i, level in enumerate(AXES[axis])} for axis in FACTORS}
    reasons = Reason("occluded", 0.98123), Reason("small_face", 31.0)
    return Score(path, "ok", quality, factors, (0.1, 0.2, 0.3, 0.25, 0.15), 12.345678, "medium", reasons)


SCORES = [
    score_of("a.png"),
    Score("sub/b c.png", "no_face"),
    score_of('with "quotes", commas.png', 0.25),
    score_of("zwei\u00e4.png"),
    score_of("not\udcff utf8.png"),
    Score("d.png", "ok", -1.5),  # of a system without reasons
]


def written(path: Path, scores: Iterable[Score] = SCORES) -> Path:
    journal = Journal(path, SETTINGS, resume=False)
    journal.keep(scores)
    statuses = journal.finish()
    assert statuses == {"ok": 5, "no_face": 1}
    side = [Path(f"{path}.skipped.tsv")] if path.suffix == ".txt" else []
    assert sorted(path.parent.iterdir()) == [path, *side], "nothing else is left behind"
    return path


def test_csv_holds_the_columns_and_empty_cells(tmp_path: Path) -> None:
    with open(written(tmp_path / "scores.csv"), encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ("path", "status", "quality", *FACTORS) == COLUMNS
    assert tuple(rows[0]) == (*COLUMNS, *ADDED)
    assert ("percentile", "band", "reasons", "advice", *FACE_COLUMNS) == ADDED
    assert [row["path"] for row in rows] == [score.path for score in SCORES]
    best = {axis: AXES[axis][-1] for axis in FACTORS}
    added = {"percentile": "12.35", "band": "medium", "reasons": "occluded=0.9812;small_face=31.0"}
    added["advice"] = f"{ADVICE['occluded']} {ADVICE['small_face']}"
    added |= dict.fromkeys(FACE_COLUMNS, "")
    assert rows[0] == {"path": "a.png", "status": "ok", "quality": "0.618034", **best, **added}
    assert rows[1] == {"path": "sub/b c.png", "status": "no_face", **dict.fromkeys([*COLUMNS[2:], *ADDED], "")}
    assert rows[5]["quality"] == "-1.5"
    assert rows[5]["blur"] == ""


def test_jsonl_adds_all_probabilities_and_nulls(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in written(tmp_path / "scores.jsonl").read_text().splitlines()]
    assert rows == [row_of(score) for score in SCORES]
    added = ("factors", "quality_distribution", "percentile", "band", "reasons", *FACE_COLUMNS)
    assert tuple(rows[0]) == (*COLUMNS, *added)
    assert rows[0]["reasons"][0] == {"code": "occluded", "value": 0.9812, "advice": ADVICE["occluded"]}
    assert rows[0]["factors"]["pose"] == {"profile": 0.25, "slight angle": 2.25, "frontal": 6.25}
    assert rows[0]["quality_distribution"] == [0.1, 0.2, 0.3, 0.25, 0.15]
    assert rows[0]["percentile"] == 12.35
    assert {key for key, value in rows[1].items() if value is not None} == {"path", "status"}
    assert rows[5]["factors"] is None


def test_parquet_has_the_fields_of_jsonl(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(written(tmp_path / "scores.PARQUET")).to_pylist()
    expected = [row_of(score) for score in SCORES]
    assert rows.pop(4).pop("path") == "not\\udcff utf8.png", "Parquet's text is UTF-8"
    del expected[4]
    assert rows == expected


def test_lines_are_the_published_ones_without_failures(tmp_path: Path) -> None:
    lines = written(tmp_path / "scores.txt").read_bytes().decode(errors="surrogateescape").splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == [score.path for score in SCORES if score.status == "ok"]
    assert lines[0] == "a.png 0.618034"
    assert (tmp_path / "scores.txt.skipped.tsv").read_text() == "path\tstatus\nsub/b c.png\tno_face\n"


def test_readable_lines_split_into_their_cells() -> None:
    assert readable_header().split() == ["status", "quality", *FACTORS, "path"]
    columns = len(readable_header().split())
    lines = [readable_row(row_of(score)).split(maxsplit=columns - 1) for score in SCORES]
    assert [line[-1] for line in lines] == [score.path for score in SCORES]
    assert lines[0][:4] == ["ok", "0.6180", "clear", "unobstructed"]
    assert lines[1][:3] == ["no_face", "-", "-"]
    starts = {readable_row(row_of(score)).index(str(score.path)) for score in SCORES}
    assert starts == {readable_header().index("path")}, "columns are aligned"


def interrupted(scores: Iterable[Score]) -> Iterator[Score]:
    yield from scores
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", FORMATS)
def test_interrupted_run_goes_on(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"scores{suffix}"
    paths = [str(score.path) for score in SCORES]
    by_path = dict(zip(paths, SCORES, strict=True))
    with pytest.raises(KeyboardInterrupt):
        Journal(output, SETTINGS, resume=False).keep(interrupted(SCORES[:2]))
    assert not output.exists()
    with open(tmp_path / f"scores{suffix}.partial", "a") as file:
        file.write('{"path": "half a r')  # as a killed process may leave it

    journal = Journal(output, SETTINGS, resume=True)
    remaining = list(journal.unfinished(iter(paths)))
    assert remaining == paths[2:]
    assert journal.finished == 2
    journal.keep(by_path[path] for path in remaining)
    assert journal.finish() == {"ok": 5, "no_face": 1}
    assert not (tmp_path / f"scores{suffix}.partial").exists()
    assert output.read_bytes() == written(tmp_path / "uninterrupted" / output.name).read_bytes()


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        Journal(output, SETTINGS, resume=False).keep(interrupted(SCORES[:2]))
    assert list(Journal(output, SETTINGS, resume=False).rows()) == []
    assert list(Journal(tmp_path / "new.csv", SETTINGS, resume=True).rows()) == [], "nothing to resume is no error"


def test_an_old_table_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("old")
    journal = Journal(output, SETTINGS, resume=False)
    journal.keep(SCORES)
    assert output.read_text() == "old"
    journal.finish()
    assert output.read_bytes().startswith(b"path,status")


def test_resuming_needs_the_same_settings_and_images(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        Journal(output, SETTINGS, resume=False).keep(interrupted(SCORES[:2]))
    with pytest.raises(ValueError, match="precision changed"):
        Journal(output, SETTINGS | {"precision": "bf16"}, resume=True)
    with pytest.raises(ValueError, match="crops changed"):
        Journal(output, SETTINGS | {"crops": 2}, resume=True)
    journal = Journal(output, SETTINGS, resume=True)
    with pytest.raises(ValueError, match=r"row 2 of .* is of sub/b c\.png, that image is now other\.png"):
        journal.unfinished(["a.png", "other.png"])


def test_an_option_that_is_left_out_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path / "scores.csv", SETTINGS | {"crops": 2}, resume=False).keep(interrupted(SCORES[:2]))
    with pytest.raises(ValueError, match="crops changed"):
        Journal(tmp_path / "scores.csv", SETTINGS, resume=True)


def test_names_of_tables_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in FORMATS:
        check_table_name(tmp_path / f"scores{suffix.upper()}")
    with pytest.raises(ValueError, match=r"\.csv, \.jsonl, \.parquet, \.txt, not 'scores\.xlsx'"):
        check_table_name(tmp_path / "scores.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        check_table_name(tmp_path / "scores.parquet")


def test_a_table_that_cannot_be_written_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, rows: Iterable[dict]) -> None:
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setitem(FORMATS, ".csv", full_disk)
    journal = Journal(tmp_path / "scores.csv", SETTINGS, resume=False)
    journal.keep(SCORES)
    with pytest.raises(OSError, match="no space"):
        journal.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv.partial"]
    assert len(list(journal.rows())) == len(SCORES)


NAMES = ["a\rb.png", "a\nb.png", "a\r\nb.png", 'a"b,c.png', os.fsdecode(b"caf\xe9.png"), "\u65e5.png", "plain.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_file_name_survives(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"scores{suffix}"
    journal = Journal(output, SETTINGS, resume=False)
    journal.keep(score_of(name) for name in NAMES)
    assert [row["path"] for row in journal.rows()] == NAMES
    assert journal.finish() == {"ok": len(NAMES)}
    with open_text(output) as file:
        rows: Iterable[dict] = csv.DictReader(file) if suffix == ".csv" else map(json.loads, file)
        assert [row["path"] for row in rows] == NAMES


def test_lines_leave_out_names_that_they_cannot_hold(tmp_path: Path) -> None:
    output = tmp_path / "scores.txt"
    journal = Journal(output, SETTINGS, resume=False)
    journal.keep([*(score_of(name, 0.5) for name in NAMES), Score("x.png", "missing")])
    journal.finish()
    with open_text(output) as file:
        assert file.read() == "".join(f"{name} 0.5\n" for name in NAMES[3:])
    skipped = Path(f"{output}.skipped.tsv").read_text().splitlines()
    assert skipped == [
        "path\tstatus", *(f"a{end}b.png\tbad_path" for end in (r"\r", r"\n", r"\r\n")), "x.png\tmissing",
    ]  # fmt: skip


def test_a_name_takes_one_line_of_the_terminal() -> None:
    for name in NAMES:
        assert len(readable_row(row_of(score_of(name))).splitlines()) == 1
    assert readable_row(row_of(score_of("a\r\x1b[2Jb.png"))).endswith(r"a\r\x1b[2Jb.png")
    assert readable_row(row_of(score_of(NAMES[4]))).endswith(NAMES[4])


def test_a_score_with_a_remark_is_kept(tmp_path: Path) -> None:
    scores = [Score("a.png", "no_landmarks", 0.5), Score("b.png", "no_face")]
    for suffix in (".csv", ".txt"):
        journal = Journal(tmp_path / f"scores{suffix}", SETTINGS, resume=False)
        journal.keep(scores)
        assert journal.finish() == {"no_landmarks": 1, "no_face": 1}
    rows = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert rows == ["a.png,no_landmarks,0.5" + "," * 18, "b.png,no_face" + "," * 19]
    assert (tmp_path / "scores.txt").read_text() == "a.png 0.5\n"
    assert (tmp_path / "scores.txt.skipped.tsv").read_text() == "path\tstatus\nb.png\tno_face\n"


@pytest.mark.parametrize("rows", range(11))
def test_resuming_changes_no_digit(tmp_path: Path, rows: int) -> None:
    """Interrupted behind any row: the images of an unfinished batch are scored again, together."""
    paths = [str(tmp_path / f"{seed}.png") for seed in range(10)]
    for seed, path in enumerate(paths):
        Image.fromarray(recipe.mirror_image(seed)).save(path)
    Path(paths[5]).write_text("no picture")
    scorer = Scorer("clib-fiqa", device="cpu", batch_size=4)

    def journal(name: str, resume: bool) -> Journal:
        return Journal(tmp_path / name, scorer.settings, resume, scorer.batch_size)

    undisturbed = journal("undisturbed.jsonl", resume=False)
    undisturbed.keep(scorer.stream(paths))
    undisturbed.finish()
    with pytest.raises(KeyboardInterrupt):
        journal("scores.jsonl", resume=False).keep(interrupted(itertools.islice(scorer.stream(paths), rows)))
    resumed = journal("scores.jsonl", resume=True)
    remaining = list(resumed.unfinished(paths))
    assert resumed.finished == rows - rows % 4
    assert remaining == paths[resumed.finished :]
    resumed.keep(scorer.stream(remaining))
    resumed.finish()
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_resuming_needs_the_same_batches(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        Journal(output, SETTINGS | {"batch_size": 2}, False, 2).keep(interrupted(SCORES[:3]))
    with pytest.raises(ValueError, match="batch_size changed"):
        Journal(output, SETTINGS | {"batch_size": 4}, True, 4)
    journal = Journal(output, SETTINGS | {"batch_size": 2}, True, 2)
    with pytest.raises(ValueError, match="row 3 of"):
        list(journal.unfinished(["a.png", "sub/b c.png", "other.png"]))
    assert len(list(journal.rows())) == 3, "a refused run loses no rows"


def face_of(path: str, face: int, quality: float = 0.5) -> Score:
    box, points = (1.0, 2.5, 30.126, 40.0), tuple(range(10))
    return Score(path, "ok", quality, face=face, box=box, points=points, detection=0.98765, aligned_by="d", faces=2)


def test_each_face_has_a_row_in_every_format(tmp_path: Path) -> None:
    scores = [face_of("a.png", 0), face_of("a.png", 1, 0.25), Score("b.png", "no_face")]
    for suffix in (".csv", ".jsonl", ".parquet"):
        journal = Journal(tmp_path / f"scores{suffix}", SETTINGS, resume=False)
        journal.keep(scores)
        assert journal.finish() == {"ok": 2, "no_face": 1}
    with open(tmp_path / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["face"] for row in rows] == ["0", "1", ""]
    assert rows[1]["box"] == "1.0 2.5 30.13 40.0"
    assert [float(x) for x in rows[1]["points"].split()] == list(range(10))
    assert (rows[1]["detection"], rows[1]["aligned_by"], rows[1]["faces"]) == ("0.9877", "d", "2")
    json_rows = [json.loads(text) for text in (tmp_path / "scores.jsonl").read_text().splitlines()]
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "scores.parquet").to_pylist()
    for row, other in zip(json_rows, table, strict=True):
        assert {column: row[column] for column in FACE_COLUMNS} == {column: other[column] for column in FACE_COLUMNS}
    assert json_rows[1]["box"] == [1.0, 2.5, 30.13, 40.0]


@pytest.mark.parametrize("rows", range(7))
def test_resuming_keeps_the_faces_of_an_image_together(tmp_path: Path, rows: int) -> None:
    """Interrupted behind any row: an image is finished when the next one has a row, and its batch when all are."""
    faces = {"a.png": 1, "b.png": 2, "c.png": 2, "d.png": 1}
    scores = [face_of(path, face) for path, count in faces.items() for face in range(count)]
    settings = {**SETTINGS, "faces": "all"}
    journal = Journal(tmp_path / "scores.csv", settings, resume=False, batch_size=2)
    journal.keep(scores[:rows])
    again = Journal(tmp_path / "scores.csv", settings, resume=True, batch_size=2)
    left = list(again.unfinished(faces))
    assert left == (list(faces) if rows < 4 else ["c.png", "d.png"])
    assert again.finished == 4 - len(left)
    again.keep(score for score in scores if score.path in left)
    assert again.finish() == {"ok": 6}


def frame_of(path: str, frame: int, face: int) -> Score:
    return replace(face_of(path, face), frame=frame, time=frame / 25, track=face)


MIXED = ["a.png", "b.png", "c.png", "v.mp4", "v.mp4", "d.png", "e.png", "f.png", "w.mp4", "x.mp4", "y.mp4", "g.png"]
BATCHES = [["a.png", "b.png"], ["c.png"], ["v.mp4"], ["v.mp4"], ["d.png", "e.png"], ["f.png"], ["w.mp4"], ["x.mp4"],
           ["y.mp4"], ["g.png"]]  # fmt: skip


def scores_of(path: str) -> list[Score]:
    """A picture and its faces, a video of two frames whose end is lost, or a video without a face."""
    if not path.endswith(".mp4"):
        return [face_of(path, 0), face_of(path, 1)]
    if path == "w.mp4":
        return [Score(path, "no_face")]
    return [frame_of(path, 0, 0), frame_of(path, 3, 0), frame_of(path, 3, 1), Score(path, "truncated", frame=4)]


def test_pictures_of_a_batch_and_each_video_are_scored_together() -> None:
    assert list(in_batches(MIXED, 2, is_video)) == BATCHES
    assert list(in_batches([], 2, is_video)) == []


@pytest.mark.parametrize("rows", range(1 + sum(len(scores_of(path)) for path in MIXED)))
def test_resuming_keeps_every_video_that_another_follows(tmp_path: Path, rows: int) -> None:
    """Interrupted behind any row: the run goes on at the beginning of a batch, of which a video is one."""
    settings = {**SETTINGS, "faces": "all"}
    scores = [score for path in MIXED for score in scores_of(path)]
    Journal(tmp_path / "scores.csv", settings, resume=False, batch_size=2).keep(scores[:rows])
    again = Journal(tmp_path / "scores.csv", settings, resume=True, batch_size=2)
    left = list(again.unfinished(MIXED, is_video))
    ends = list(itertools.accumulate(len(scores_of(path)) for path in MIXED))   # rows at the end of each path
    begun = sum(end < rows for end in ends)   # paths that another follows
    finished = [count for count in itertools.accumulate(map(len, BATCHES)) if count <= begun]
    assert again.finished == (finished or [0])[-1]
    assert left == MIXED[again.finished :]
    again.keep(score for path in left for score in scores_of(path))
    assert [row["path"] for row in again.rows()] == [score.path for score in scores]
