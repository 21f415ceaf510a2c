"""Atomic writes, outputs that one run holds, and text that holds any file name."""

from __future__ import annotations

import csv
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from model.files import (
    as_utf8,
    csv_text,
    filling_folder,
    from_utf8,
    only_run,
    only_writer,
    open_text,
    printable,
    replacing,
    write_csv_rows,
    write_text,
)
from training.state import sole_run

ROOT = Path(__file__).parents[1]


def test_the_old_file_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")


    def fail_in_the_middle() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail_in_the_middle()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_a_new_file_has_the_mode_of_new_files(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_text(tmp_path / "written", "text")
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_two_writers_have_a_file_each(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second


def test_a_second_run_with_the_same_output_ends_at_once(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    code = "import sys; from model.files import only_run\nwith only_run(sys.argv[1]): pass"
    command = [sys.executable, "-c", code, str(output)]
    with only_run(output):
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"another run is writing {output}" in second.stderr
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_lock_file_is_removed_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards another run may hold it; without its file a third one would not see that."""
    release, seen = FileLock.release, []

    def look_and_release(lock: FileLock, *arguments: object) -> None:
        seen.append((lock.is_locked, list(tmp_path.iterdir())))
        release(lock, *arguments)

    monkeypatch.setattr(FileLock, "release", look_and_release)
    with only_run(tmp_path / "scores.csv"):
        assert [file.name for file in tmp_path.iterdir()] == ["scores.csv.lock"]
    assert seen == [(True, [])]


@pytest.mark.parametrize(
    "name", ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a"b,c.jpg', os.fsdecode(b"caf\xe9.jpg"), "日.jpg"]
)
def test_csv_holds_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    with open_text(path, "w") as file:
        write_csv_rows(file, [["path", "quality"], [name, 0.5]])
    with open_text(path) as file:
        assert list(csv.reader(file)) == [["path", "quality"], [name, "0.5"]]


def test_plain_csv_rows_are_not_quoted() -> None:
    file = io.StringIO()
    write_csv_rows(file, [["a.jpg", "ok", 0.5]])
    assert file.getvalue() == "a.jpg,ok,0.5\n"


NAMES = st.text(st.sampled_from([*"\\udce9'=+-@\t\r\n,\"a＝", "\udce9", "\udc80"]), max_size=12)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(NAMES)
def test_cells_are_no_formulas_and_are_read_as_they_were(name: str) -> None:
    file = io.StringIO(newline="")
    write_csv_rows(file, [[name, -0.5]])
    file.seek(0)
    [row] = csv.reader(file)
    assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
    assert (csv_text(row[0]), row[1]) == (name, "-0.5")


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1.25e-07", "'-5"])
def test_numbers_stay_numbers(number: str) -> None:
    file = io.StringIO()
    write_csv_rows(file, [[number]])
    assert file.getvalue() == f"{number}\n"
    assert csv_text(number) == number


@settings(max_examples=300, derandomize=True, deadline=None)
@given(NAMES, NAMES)
def test_names_that_are_no_utf8_stay_distinct_as_text(one: str, other: str) -> None:
    assert as_utf8(one).encode().decode() == as_utf8(one)
    assert from_utf8(as_utf8(one)) == one
    assert (as_utf8(one) == as_utf8(other)) == (one == other)


def test_plain_names_stay_plain() -> None:
    for name in ("a.jpg", "C:\\users\\é.png", "it's.jpg", "日本.jpg"):
        assert as_utf8(name) == name
    assert as_utf8(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"


def test_the_terminal_sees_no_control_characters() -> None:
    assert printable("a\x1b[31m\n\t\x9b\u202e\udc9b.jpg") == "a\\x1b[31m\\n\\t\\x9b\\u202e\\x9b.jpg"
    assert printable("é 日 \udce9") == "é 日 \udce9"


def test_an_output_that_is_a_folder_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; the name of a file"), only_writer(tmp_path):
        pytest.fail("the work began")
    with only_writer(tmp_path / "new" / "a.csv"):
        assert (tmp_path / "new").is_dir()


LEFT = [".a.csv.abcd_123.partial", ".a.csv.skipped.tsv.abcdefgh.partial", ".a.csv.json.12345678.partial"]
OF_OTHERS = [".b.csv.abcd1234.partial", ".a.csv.1-of-2.jsonl.abcd1234.partial", "a.csv.partial", ".a.csv.partial"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """And nothing of another run, or of the journal."""
    for name in (*LEFT, *OF_OTHERS):
        (tmp_path / name).write_text("half")
    (tmp_path / ".a.csv.folder12.partial").mkdir()
    (tmp_path / ".a.csv.folder12.partial" / "part").write_text("half")
    with only_run(tmp_path / "a.csv"):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*OF_OTHERS, "a.csv.lock"])
    for name in ("state.safetensors", "8backbone.pth", "log.jsonl"):
        (tmp_path / f".{name}.abcd1234.partial").write_text("half")
    with sole_run(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OF_OTHERS), "others may write there too"


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "old").write_text("old")
    replace = os.replace

    def fail_for_new(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial":
            raise OSError("the disk fails")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_new)
    with pytest.raises(OSError, match="the disk fails"), filling_folder(tmp_path / "parts", replaced=True) as new:
        (new / "new").write_text("new")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["parts", "parts/old"]
