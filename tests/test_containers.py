"""Pictures inside tar archives and Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

import inference
from faces.containers import is_container, members, read_member, split
from faces.reader import ImageError

SAMPLES = Path(__file__).parents[1] / "samples"
FACE = (SAMPLES / "hopper_tiny.png").read_bytes()


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return str(path)


def test_pictures_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x/1.png", FACE), ("x/1.json", b"{}"), ("../2.JPG", b"two"), ("1.png", b"")])
    assert is_container(path)
    found = list(members(path))
    assert found == [f"{path}/x/1.png", f"{path}/../2.JPG", f"{path}/1.png"]   # no link, nothing but pictures
    contents = [read_member(*pair) for name in found if (pair := split(name))]
    assert contents == [FACE, b"two", b""]


def test_a_path_that_only_looks_like_a_container(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    assert not is_container(str(tmp_path / "folder.tar"))
    assert split(str(tmp_path / "folder.tar" / "a.png")) is None
    assert split("a/b.png") is None


def test_what_is_not_there_has_a_status(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", FACE)])
    for member in ("none.png", "link.png"):
        with pytest.raises(ImageError) as error:
            read_member(path, member)
        assert error.value.status == "missing"
    with pytest.raises(ImageError) as error:
        read_member(str(tmp_path / "none.tar"), "1.png")
    assert error.value.status == "missing"


def test_an_archive_that_is_cut_off_has_its_first_pictures(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", b"1" * 700), ("2.png", b"2" * 5000)])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: 512 + 1024 + 512 + 2000])   # in the middle of the second
    assert list(members(path))[-1] == path   # the row that tells of the loss
    assert read_member(path, "1.png") == b"1" * 700
    with pytest.raises(ImageError) as error:
        read_member(path, "2.png")
    assert error.value.status in ("truncated", "missing")


def test_a_file_that_is_no_archive_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is no readable tar archive"):
        list(members(str(path)))
    with pytest.raises(ImageError) as error:
        read_member(str(path), "1.png")
    assert error.value.status == "truncated"


def test_a_damaged_archive_is_a_row_and_its_neighbours_are_scored(tmp_path: Path, weights: Path) -> None:
    """The pictures of an archive through inference.py: scored, and copied out of it."""
    good, bad = write_tar(tmp_path / "a.tar", [("x/1.png", FACE)]), tmp_path / "b.tar"
    bad.write_bytes(b"no archive" * 100)
    call = [good, str(bad), "--weights", str(weights), "--align", "no", "--output", str(tmp_path / "t.jsonl")]
    assert inference.main([*call, "--copy-to", str(tmp_path / "copies")]) == 1
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [(row["path"], row["status"]) for row in rows] == [(f"{good}/x/1.png", "ok"), (str(bad), "not_an_image")]
    assert [path.read_bytes() for path in (tmp_path / "copies").rglob("*.png")] == [FACE]


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", b"old")])
    assert read_member(path, "1.png") == b"old"
    write_tar(tmp_path / "a.tar", [("0.png", b"-" * 600), ("1.png", b"new")])
    assert read_member(path, "1.png") == b"new"


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_of_a_parquet_file(tmp_path: Path, struct: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    contents = [b"0", b"1", None, FACE, b"4"]
    values = [{"bytes": content, "path": None} for content in contents] if struct else contents
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"label": range(5), "image": values}), path, row_group_size=2)
    found = list(members(str(path)))
    assert found == [f"{path}/{row}" for row in range(5)]
    assert [read_member(*pair) for row in (3, 0, 4, 1) if (pair := split(found[row]))] == [FACE, b"0", b"4", b"1"]
    for member in ("2", "5", "-1"):
        with pytest.raises(ImageError) as error:
            read_member(str(path), member)
        assert error.value.status == "missing"


def test_a_parquet_file_without_pictures_is_one_line(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no column of pictures"):
        list(members(str(tmp_path / "a.parquet")))
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"b\.parquet is no readable Parquet file"):
        list(members(str(tmp_path / "b.parquet")))
