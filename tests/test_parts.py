"""A Parquet table in parts with a manifest: of one run, of shards, and over a cluster."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from test_tables import SCORES, SETTINGS

import inference
from evaluation.scores import read_scores
from faces.listing import list_images
from scoring.tables import MANIFEST, Journal

parquet = pytest.importorskip("pyarrow.parquet")
ROOT = Path(__file__).parents[1]
CPU = ["--align", "no", "--device", "cpu", "--workers", "0", "--threads", "1", "--batch-size", "2"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven crops, one of them cut off."""
    folder = tmp_path_factory.mktemp("crops")
    source = list_images(ROOT / "samples")[0].read_bytes()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(source[: 500 if number == 4 else None])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("part_rows", "sizes"), [(1, [1] * 6), (4, [4, 2]), (3, [3, 3]), (100, [6])])
def test_parts_are_one_table(tmp_path: Path, part_rows: int, sizes: list[int]) -> None:
    output = tmp_path / "scores.parquet"
    journal = Journal(output, SETTINGS, resume=False, part_rows=part_rows)
    journal.keep(SCORES)
    assert journal.finish() == {"ok": 5, "no_face": 1}
    names = [f"part-{number:05}.parquet" for number in range(len(sizes))]
    assert sorted(contents(output)) == [MANIFEST, *names]
    manifest = json.loads((output / MANIFEST).read_text())
    hashes = [hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names]
    assert manifest["parts"] == [
        {"file": name, "rows": rows, "sha256": sha256} for name, rows, sha256 in zip(names, sizes, hashes, strict=True)
    ]
    assert {name: manifest[name] for name in ("version", "rows", "statuses", "settings")} == {
        "version": 1, "rows": 6, "statuses": {"ok": 5, "no_face": 1}, "settings": SETTINGS
    }  # fmt: skip
    Journal(tmp_path / "one.parquet", SETTINGS, resume=False).keep(SCORES)
    Journal(tmp_path / "one.parquet", SETTINGS, resume=True).finish()
    whole = parquet.read_table(tmp_path / "one.parquet")
    assert parquet.read_table(output).to_pylist() == whole.to_pylist()
    assert manifest["schema"] == {field.name: str(field.type) for field in whole.schema}
    assert read_scores(output).keys() == read_scores(tmp_path / "one.parquet").keys()
    assert len(read_scores(output)) == 6


def test_a_table_without_rows_has_one_part(tmp_path: Path) -> None:
    Journal(tmp_path / "a.parquet", SETTINGS, resume=False, part_rows=3).finish()
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 0
    assert json.loads((tmp_path / "a.parquet" / MANIFEST).read_text())["rows"] == 0


def test_shards_make_the_parts_of_one_run(faces: Path, tmp_path: Path) -> None:
    call = [str(faces), *CPU, "--part-rows", "3", "--output"]
    assert inference.main([*call, str(tmp_path / "one.parquet")]) == 1
    for number in (2, 1):
        assert inference.main([*call, str(tmp_path / "two.parquet"), "--shard", f"{number}/2"]) in (0, 1)
    assert inference.main([*call, str(tmp_path / "two.parquet"), "--merge", "2"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet", "two.parquet"]
    assert contents(tmp_path / "one.parquet") == contents(tmp_path / "two.parquet")
    settings = json.loads((tmp_path / "one.parquet" / MANIFEST).read_text())["settings"]
    assert settings["method"] == "clib-fiqa"


def test_a_cluster_makes_the_parts_of_one_machine(faces: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra")
    call = [str(faces), *CPU, "--part-rows", "3", "--output"]
    try:
        assert inference.main([*call, str(tmp_path / "ray.parquet"), "--engine", "ray"]) == 1
    finally:
        ray.shutdown()
    assert inference.main([*call, str(tmp_path / "one.parquet")]) == 1
    assert contents(tmp_path / "ray.parquet") == contents(tmp_path / "one.parquet")


def test_an_older_folder_is_replaced_and_another_is_not(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.parquet"
    call = [str(faces / "0.png"), str(faces / "1.png"), *CPU, "--output", str(output), "--part-rows"]
    assert inference.main([*call, "1"]) == 0
    assert len(contents(output)) == 3
    assert inference.main([*call, "2"]) == 0
    assert len(contents(output)) == 2
    (output / "thesis.txt").write_text("somebody's own")
    assert_refused("is a folder", [*call, "2"], capsys)
    (output / "thesis.txt").unlink()
    for damaged in ("{}", "[]", "{", '{"parts": [1]}'):
        (output / MANIFEST).write_text(damaged)
        assert_refused("is a folder", [*call, "2"], capsys)
    (output / MANIFEST).unlink()
    assert_refused("is a folder", [*call, "2"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


def assert_refused(why: str, call: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert inference.main(call) == 2
    assert why in capsys.readouterr().err


def test_a_file_is_no_folder_of_parts(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.parquet").write_text("a table")
    call = [str(faces / "0.png"), *CPU, "--output", str(tmp_path / "a.parquet"), "--part-rows", "1"]
    for flags in ([], ["--merge", "2"]):
        assert_refused("is a file, and --part-rows makes a folder", [*call, *flags], capsys)
    assert (tmp_path / "a.parquet").read_text() == "a table"


def test_parts_are_of_parquet(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main([str(faces), "--part-rows", "2", "--output", str(tmp_path / "a.csv")]) == 2
    assert "--part-rows divides a Parquet table" in capsys.readouterr().err
