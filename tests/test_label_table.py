"""The label table: what is written comes back, published rows are read, and errors say where and what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labels.label_table import COLUMNS, Label, is_storable, read_labels, resolve, write_labels, write_skipped

HEADER = "path\tquality\tblur\tpose\texpression\tillumination\tocclusion"
PATHS = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
LABELS = st.builds(
    Label,
    path=PATHS,
    quality=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    blur=st.integers(0, 2),
    pose=st.integers(0, 2),
    expression=st.integers(0, 1),
    illumination=st.integers(0, 1),
    occlusion=st.integers(0, 1),
    identity=st.none() | PATHS,
    status=st.sampled_from([None, "ok", "no_face"]),
)


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@settings(max_examples=200, deadline=None)
@given(labels=st.lists(LABELS))
def test_round_trip(labels: list[Label], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "labels.tsv"
    write_labels(path, labels)
    assert read_labels(path) == labels
    assert [file.name for file in path.parent.iterdir()] == ["labels.tsv"], "no partial file is left"


def test_the_columns_of_the_contract(tmp_path: Path) -> None:
    labels = [Label("a b/ü.jpg", 0.1 + 0.2, 1, 2, 0, 1, 0, "a b", "no_face"), Label("c", None, 0, 0, 0, 0, 0)]
    write_labels(tmp_path / "l.tsv", labels)
    assert (tmp_path / "l.tsv").read_text(encoding="utf-8") == (
        f"{HEADER}\tidentity\tstatus\n"
        "a b/ü.jpg\t0.30000000000000004\t1\t2\t0\t1\t0\ta b\tno_face\n"
        "c\t\t0\t0\t0\t0\t0\t\t\n"
    )
    assert COLUMNS[:7] == tuple(HEADER.split("\t"))


def test_a_name_that_is_not_utf8_comes_back(tmp_path: Path) -> None:
    label = Label("caf\udce9.jpg", 1.0, 0, 0, 0, 0, 0)
    write_labels(tmp_path / "l.tsv", [label])
    assert read_labels(tmp_path / "l.tsv") == [label]


def test_columns_in_another_order_and_unknown_ones(tmp_path: Path) -> None:
    text = "path\tsource\tocclusion\tillumination\texpression\tpose\tblur\tquality\r\na.jpg\tlfw\t0\t1\t0\t2\t1\t.5\r\n"
    assert read_labels(table(tmp_path, "\ufeff" + text)) == [Label("a.jpg", 0.5, 1, 2, 0, 1, 0)]


@pytest.mark.parametrize(
    "row",
    [
        "a b.jpg\t[[0.58]]\t1\t2\t0\t1\t0",
        "a b.jpg\t0.58\t1\t2\t0\t1\t0",
        "a b.jpg [[0.58]] 1 2 0 1 0",
        "a b.jpg  0.58 1 2 0 1 0",
    ],
)
def test_published_rows_without_a_header(tmp_path: Path, row: str) -> None:
    expected = [Label("a b.jpg", 0.58, 1, 2, 0, 1, 0), Label("a b.jpg", -1500.0, 1, 2, 0, 1, 0)]
    assert read_labels(table(tmp_path, row + "\n\n" + row.replace("0.58", "-1.5e3") + "\n")) == expected


def test_tabs_and_spaces_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: 2 tab-separated cells where 7 were expected"):
        read_labels(table(tmp_path, "a b.jpg 0.58\t1 2 0 1 0\n"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg\t0.5\t3\t0\t0\t0\t0", "line 3: blur is '3'; one of 0 hazy, 1 blurry, 2 clear was expected"),
        ("a.jpg\t0.5\t0\t-1\t0\t0\t0", "line 3: pose is '-1'"),
        ("a.jpg\t0.5\t0\t0\t2\t0\t0", "line 3: expression is '2'"),
        ("a.jpg\t0.5\t0\t0\t0\t\t0", "line 3: illumination is ''"),
        ("a.jpg\t0.5\t0\t0\t0\t0\t0.0", "line 3: occlusion is '0.0'"),
        ("a.jpg\tgood\t0\t0\t0\t0\t0", "line 3: quality is 'good'; a finite number, or nothing, was expected"),
        ("a.jpg\tnan\t0\t0\t0\t0\t0", "line 3: quality is 'nan'"),
        ("a.jpg\tinf\t0\t0\t0\t0\t0", "line 3: quality is 'inf'"),
        ("a.jpg\t0.5\t0\t0\t0\t0", "line 3: 6 tab-separated cells where 7 were expected"),
        ("\t0.5\t0\t0\t0\t0\t0", "line 3: the path is empty"),
        ("a.jpg 0.5 0 0 0 0 0", "line 3: 1 tab-separated cells where 7 were expected"),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, row: str, message: str) -> None:
    path = table(tmp_path, f"{HEADER}\n\n{row}\n")
    with pytest.raises(ValueError, match=r"labels\.tsv") as caught:
        read_labels(path)
    assert message in str(caught.value)


def test_a_header_that_lacks_columns_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the header lacks quality, occlusion"):
        read_labels(table(tmp_path, "path\tblur\tpose\texpression\tillumination\na\t0\t0\t0\t0\n"))
    with pytest.raises(ValueError, match=r"labels\.tsv is empty; a label table starts with the header path quality"):
        read_labels(table(tmp_path, "\n"))
    assert read_labels(table(tmp_path, HEADER)) == []


@pytest.mark.parametrize("path", ["a\tb.jpg", "a\nb.jpg", "a\rb.jpg"])
def test_a_path_that_would_break_a_row_is_refused_and_the_old_table_stays(tmp_path: Path, path: str) -> None:
    assert not is_storable(path)
    assert is_storable("a b ü.jpg")
    good = Label("a.jpg", 1.0, 0, 0, 0, 0, 0)
    write_labels(tmp_path / "l.tsv", [good])
    for bad in (Label(path, 1.0, 0, 0, 0, 0, 0), Label("a.jpg", 1.0, 0, 0, 0, 0, 0, identity=path)):
        with pytest.raises(ValueError, match=r"tab or a line end.*rename"):
            write_labels(tmp_path / "l.tsv", [bad])
    assert read_labels(tmp_path / "l.tsv") == [good]


def test_the_side_file_of_skipped_images(tmp_path: Path) -> None:
    side = write_skipped(tmp_path / "l.tsv", [("a b.jpg", "truncated"), ("c\td.jpg", "not_an_image")])
    assert side == tmp_path / "l.tsv.skipped.tsv"
    assert side.read_text() == "path\tstatus\na b.jpg\ttruncated\nc\\td.jpg\tnot_an_image\n"
    write_skipped(tmp_path / "l.tsv", [])
    assert not side.exists(), "the side file of an earlier run would be wrong now"


def test_relative_paths_start_at_the_table(tmp_path: Path) -> None:
    label = Label("sub/a.jpg", None, 0, 0, 0, 0, 0)
    assert resolve(label, tmp_path / "l.tsv") == str(tmp_path / "sub/a.jpg")
    label.path = "/else/where.jpg"
    assert resolve(label, tmp_path / "l.tsv") == "/else/where.jpg"
