"""Every kind of score table."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.plain_pickle import PlainPickleError
from evaluation.scores import ScoreTableError, read_rows, read_scores, write_scores
from model.files import open_text, write_csv_rows
from scoring import Score
from scoring.tables import Row, row_of, write_csv, write_jsonl, write_parquet

NAN = math.nan
TABLES = {
    "ours.csv": 'path,status,quality,blur\n"a, b.jpg",ok,0.5,clear\nc.jpg,no_face,,\nd.jpg,ok,0.25,hazy\n',
    "quoted.csv": '"path","quality"\n"a, b.jpg","0.5"\nc.jpg,\nd.jpg,0.25\n',
    "plain.csv": 'path,quality\n"a, b.jpg",0.5\nc.jpg,nan\nd.jpg,0.25\n',
    "labels.tsv": "quality\tpath\n0.5\ta, b.jpg\ninf\tc.jpg\n0.25\td.jpg\n",
    "cr_fiqa.txt": "a, b.jpg 0.5\nc.jpg nan\n\nd.jpg 0.25\n",
    "appended.txt": "a, b.jpg 9\nc.jpg nan\nd.jpg 0.25\na, b.jpg 0.5\n",
    "tabs.txt": "a, b.jpg\t0.5\nc.jpg\tNaN\nd.jpg\t0.25\n",
    "ours.jsonl": "\n".join(
        json.dumps(row)
        for row in (
            {"path": "a, b.jpg", "status": "ok", "quality": 0.5, "factors": {}},
            {"path": "c.jpg", "status": "truncated", "quality": None},
            {"path": "d.jpg", "quality": 0.25},
        )
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_text_tables(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(TABLES[name])
    check(read_scores(file))


def check(table: dict[str, float]) -> None:
    assert list(table) == ["a, b.jpg", "c.jpg", "d.jpg"]
    np.testing.assert_array_equal(list(table.values()), [0.5, NAN, 0.25])


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"path": ["a, b.jpg", "c.jpg", "d.jpg"], "status": ["ok", "empty", "ok"], "quality": [0.5, None, 0.25]}
    pq.write_table(pa.table(columns), tmp_path / "ours.parquet")
    check(read_scores(tmp_path / "ours.parquet"))


@pytest.mark.parametrize("number", [float, np.float32, np.float64])
def test_ediffiqa_pickle(tmp_path: Path, number: type) -> None:
    table = {"a, b.jpg": number(0.5), "c.jpg": number(NAN), "d.jpg": number(0.25)}
    (tmp_path / "quality_scores.pkl").write_bytes(pickle.dumps(table))
    check(read_scores(tmp_path / "quality_scores.pkl"))


def test_ours_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "scores.csv"
    write_scores(file, [("a, b.jpg", "ok", 0.5), ("c.jpg", "no_face", NAN), ("d.jpg", "ok", 0.25)])
    assert file.read_text().splitlines()[0] == "path,status,quality"
    check(read_scores(file))
    assert list(file.parent.iterdir()) == [file]


DAMAGED = {
    "a.csv": ("path,quality\nx.jpg,good\n", "line 2: the quality 'good' is not a number"),
    "b.csv": ("path,quality\nx.jpg,1,2\n", "line 2: 3 cells"),
    "c.txt": ("x.jpg 1\ny.jpg\n", "line 2"),
    "d.txt": ("x.jpg one\n", "line 1: expected `path score`"),
    "e.jsonl": ('{"path": "x"}\n', "line 1"),
    "f.jsonl": ("path,quality\n", "line 1"),
    "g.jsonl": ("[1]\n", "line 1"),
    "h.csv": ("path,quality\n", "no scores"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_name_the_line(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ScoreTableError, match=message):
        read_scores(tmp_path / name)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ScoreTableError, match="dict"):
        read_scores(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": ScoreTableError("x")}))
    with pytest.raises(PlainPickleError):
        read_scores(tmp_path / "b.pkl")


NAMES = ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a"b,c.jpg', os.fsdecode(b"caf\xe9.jpg"), "日.jpg", " a .jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_survives(tmp_path: Path, name: str) -> None:
    """In what baseline writes, and in the columns of inference.py."""
    write_scores(tmp_path / "baseline.csv", [(name, "ok", 0.5), ("z", "no_face", NAN)])
    with open_text(tmp_path / "inference.csv", "w") as file:
        write_csv_rows(file, [("path", "status", "quality"), (name, "ok", 0.5), ("z", "empty", "")])
    (tmp_path / "inference.jsonl").write_text(json.dumps({"path": name, "status": "ok", "quality": 0.5}) + "\n")
    for file in ("baseline.csv", "inference.csv", "inference.jsonl"):
        assert next(iter(read_scores(tmp_path / file).items())) == (name, 0.5)


@pytest.mark.parametrize("name", [name for name in NAMES if "\n" not in name])
def test_any_name_without_a_line_end_survives_in_lines(tmp_path: Path, name: str) -> None:
    with open_text(tmp_path / "lines.txt", "w") as file:
        file.write(f"{name} 0.5\nz 0.25\r\n")
    assert read_scores(tmp_path / "lines.txt") == {name: 0.5, "z": 0.25}


def test_pickles_of_lists_and_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([("a, b.jpg", 0.5, 1), ("c.jpg", NAN, 1), ("d.jpg", 0.25, 2)]))
    check(read_scores(tmp_path / "a.pkl"))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({b"caf\xe9": 0.5}))
    assert read_scores(tmp_path / "b.pkl") == {os.fsdecode(b"caf\xe9"): 0.5}


@pytest.mark.parametrize("row", ['{"path": ["x"], "quality": 1}', '{"path": "x", "quality": ' + "[" * 100_000])
def test_odd_json_names_the_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(ScoreTableError, match="line 1"):
        read_scores(tmp_path / "a.jsonl")


def test_names_come_back_from_our_csv_and_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    names = ["=1+1.jpg", "'=x.jpg", "-a.jpg", "\tb.jpg", "caf\udce9.jpg", "caf\udce8.jpg", "caf\\udce9.jpg", "'c.jpg"]
    rows = [row_of(Score(name, "ok", 0.5)) for name in names]
    for suffix, write in (("csv", write_csv), ("parquet", write_parquet)):
        write(tmp_path / f"t.{suffix}", rows)
        assert list(read_scores(tmp_path / f"t.{suffix}")) == names
    assert b"\n=1" not in (tmp_path / "t.csv").read_bytes()


def rows_of_faces(qualities: Sequence[float]) -> list[Row]:
    """The rows of the faces of a.jpg, the largest first."""
    return [row_of(Score("a.jpg", "ok", quality, face=number)) for number, quality in enumerate(qualities)]


@pytest.mark.parametrize(("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)])
def test_of_several_faces_the_first_counts(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    """inference.py --faces all writes the largest face first, and the smallest one last."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = [*rows_of_faces([0.6, 0.9, 0.1]), row_of(Score("b.jpg", "ok", 0.5, face=0))]
    for order, name in ((rows, "t"), (rows[::-1], "reversed")):
        write(tmp_path / f"{name}.{suffix}", order)
        assert read_scores(tmp_path / f"{name}.{suffix}") == {"a.jpg": 0.6, "b.jpg": 0.5}
        assert [row.quality for row in read_rows(tmp_path / f"{name}.{suffix}")] == [row["quality"] for row in order]


@pytest.mark.parametrize(("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)])
def test_no_row_stands_for_a_video(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    first, second = (row_of(Score("clip.mp4", "ok", 0.5, face=0, frame=frame, time=0.0, track=0)) for frame in (0, 25))
    for rows in ([first, second], [first, row_of(Score("clip.mp4", "truncated"))]):
        write(tmp_path / f"t.{suffix}", rows)
        with pytest.raises(ScoreTableError, match=r"clip\.mp4 is a video with several rows; one score an image"):
            read_scores(tmp_path / f"t.{suffix}")
        assert len(list(read_rows(tmp_path / f"t.{suffix}"))) == 2


def test_other_columns_named_face_or_frame_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,quality,face,frame\na.jpg,0.5,left,\na.jpg,0.25,0.93,\nb.jpg,1,,7\n")
    assert read_scores(tmp_path / "t.csv") == {"a.jpg": 0.25, "b.jpg": 1}


def test_a_parquet_that_is_damaged_or_holds_other_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    parquet.write_table(pyarrow.table({"path": [1, 2], "quality": [0.5, 0.6]}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        with pytest.raises(ScoreTableError, match=rf"{name}\.parquet"):
            read_scores(tmp_path / f"{name}.parquet")


def ofiq_table(end: str = "", native: str = "") -> str:
    """A CSV as OFIQ's sample application writes it: the header ends with a semicolon; `end` is that of the rows."""
    names = ["UnifiedQualityScore", "Sharpness"]
    header = ["Filename", *(name + native for name in names), *(f"{name}.scalar" for name in names)]
    rows = ['"a; b.jpg";21.5;3.5;40;61;812', "c.jpg;0.000000;4.5;-1;70;790", "d.jpg;24.25;0.000000;66;-1;801"]
    return ";".join([*header, "assessment_time_in_ms", ""]) + "\n" + "".join(f"{row}{end}\n" for row in rows)


@pytest.mark.parametrize("end", ["", ";"])
@pytest.mark.parametrize("native", ["", ".native"])
def test_ofiq(tmp_path: Path, end: str, native: str) -> None:
    """A scalar of -1 means that the component failed; the native value, 0, then says nothing either."""
    file = tmp_path / "ofiq.csv"
    file.write_text(ofiq_table(end, native))
    expected = {"": [40, NAN, 66], ":Sharpness.scalar": [61, 70, NAN], f":Sharpness{native}": [3.5, 4.5, NAN]}
    expected[f":UnifiedQualityScore{native}"] = [21.5, NAN, 24.25]
    for column, values in expected.items():
        table = read_scores(f"{file}{column}")
        assert list(table) == ["a; b.jpg", "c.jpg", "d.jpg"]
        np.testing.assert_array_equal(list(table.values()), values)


def test_a_column_of_any_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,quality,sharpness\na.jpg,0.5,7\n")
    (tmp_path / "german.csv").write_text("path;quality\na.jpg;0.5\n")
    (tmp_path / "12:30.csv").write_text("path,quality\na.jpg,0.25\n")  # a colon in the name of a file
    assert read_scores(f"{tmp_path}/t.csv:sharpness") == {"a.jpg": 7}
    assert read_scores(tmp_path / "german.csv") == {"a.jpg": 0.5}
    assert read_scores(tmp_path / "12:30.csv") == {"a.jpg": 0.25}
    with pytest.raises(ScoreTableError, match="no column blur"):
        read_scores(f"{tmp_path}/t.csv:blur")
    (tmp_path / "t.jsonl").write_text('{"path": "a", "quality": 1}\n')
    with pytest.raises(ScoreTableError, match="tables of text only"):
        read_scores(f"{tmp_path}/t.jsonl:blur")


def test_damaged_ofiq_tables(tmp_path: Path) -> None:
    file = tmp_path / "ofiq.csv"
    file.write_text(ofiq_table())
    with pytest.raises(ScoreTableError, match=r"no HeadSize\.scalar; expected one of UnifiedQualityScore\.scalar"):
        read_scores(f"{file}:HeadSize.scalar")
    file.write_text(ofiq_table() + "e.jpg;1;2\n")
    with pytest.raises(ScoreTableError, match="line 5: 3 cells, expected 6"):
        read_scores(file)
    file.write_text(ofiq_table() + "e.jpg;x;2;x;4;5\n")
    with pytest.raises(ScoreTableError, match="line 5: the quality 'x' is not a number"):
        read_scores(file)


def test_ofiq_stands_on_the_same_curve(tmp_path: Path) -> None:
    """The CSV goes through evaluate.py edc; images that OFIQ could not assess count as the worst."""
    import evaluate

    names = [f"{person}/{shot}.jpg" for person in "ab" for shot in range(4)]
    rng = np.random.default_rng(0)
    rows = [f"/photos/{name};20;{-1 if name == 'a/3.jpg' else 40 + i};800" for i, name in enumerate(names)]
    table = tmp_path / "ofiq.csv"
    head = "Filename;UnifiedQualityScore;UnifiedQualityScore.scalar;assessment_time_in_ms;"
    table.write_text("\n".join([head, *rows]) + "\n")
    pairs = [(a, b, int(a[0] == b[0])) for i, a in enumerate(names) for b in names[i + 1 :]]
    lines = ["path_a\tpath_b\tsame", *("\t".join(map(str, pair)) for pair in pairs)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    rows_of = rng.normal(size=(len(names), 4)).astype(np.float32)
    np.savez(tmp_path / "fr.npz", names=np.array(names), embeddings=rows_of)
    flags = ["--pairs", str(tmp_path / "pairs.tsv"), "--embeddings", f"fr={tmp_path / 'fr.npz'}"]
    flags += ["--scores", f"ofiq={table}", f"native={table}:UnifiedQualityScore", "--fmr", "0.1", "--bootstrap", "0"]
    assert evaluate.main(["edc", *flags, "--output", str(tmp_path / "edc")]) == 0
    found = json.loads((tmp_path / "edc" / "results.json").read_text())
    assert found["methods"]["ofiq"]["without_ok_score"] == {"count": 1, "examples": ["a/3.jpg"]}
    assert {row["method"] for row in found["results"]} == {"ofiq", "native"}
    assert str(table) in found["inputs"]
