"""The known labels of damaged versions: every version finds its own original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labels.anchors import photo_of
from labels.label_table import Label, read_labels, write_labels
from recipes.default_model import known_labels
from recipes.default_model.known_labels import image_of, with_known


def label(path: str, **factors: int) -> Label:
    """A row of faces.tsv, which lies beside the folder `faces`."""
    known = {"blur": 2, "pose": 2, "expression": 1, "illumination": 1, "occlusion": 1} | factors
    return Label(path, 1.0, **known, identity=str(Path(path).parent).removeprefix("faces/"), status="ok")


def test_folders_of_one_name_are_told_apart() -> None:
    """`a/ann` and `b/ann` are two people."""
    first, second = label("faces/a/ann/1.jpg", pose=0), label("faces/b/ann/1.jpg", expression=0)
    originals = {photo_of(image_of(original)): original for original in (first, second)}
    assert len(originals) == 2
    damage = {
        "a/ann/1~1.png": {"blur": "0", "illumination": "1", "occlusion": "1"},
        "b/ann/1~1.png": {"blur": "1", "illumination": "0", "occlusion": "0"},
    }
    found = [with_known(label(f"faces/{path}"), originals, damage) for path in damage]
    assert found[0] == label("faces/a/ann/1~1.png", pose=0, blur=0)
    assert found[1] == label("faces/b/ann/1~1.png", expression=0, blur=1, illumination=0, occlusion=0)
    assert with_known(second, originals, damage) == second


def test_a_row_without_an_identity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.jpg has no identity"):
        image_of(Label("a.jpg", 1.0, 0, 0, 0, 0, 0))


def test_a_table_with_damaged_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["faces/a/ann/1.png", "faces/a/ann/1~1.png", "faces/b/ann/1.png"]
    for index, path in enumerate(paths):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((112, 112, 3), 50 * index, np.uint8)).save(tmp_path / path)
    write_labels(tmp_path / "faces.tsv", [label(paths[0], pose=1), label(paths[1], pose=0), label(paths[2])])
    rows = "path\tblur\tillumination\tocclusion\tkinds\na/ann/1~1.png\t2\t0\t1\tdark:0.50\n"
    (tmp_path / "damage.tsv").write_text(rows)
    files = [str(tmp_path / name) for name in ("faces.tsv", "damage.tsv", "out.tsv")]
    assert known_labels.main(files) == 0
    found = read_labels(tmp_path / "out.tsv")
    assert [row.path for row in found] == paths
    assert [row.pose for row in found] == [1, 1, 2]
    assert [row.illumination for row in found] == [1, 0, 1]

    write_labels(tmp_path / "faces.tsv", [label(paths[1]), label(paths[2])])
    assert known_labels.main(files) == 2
    assert "1~1.png is a version of a photograph that has no row" in capsys.readouterr().err
    (tmp_path / paths[2]).write_text("not a picture")
    assert known_labels.main(files) == 2
    assert "1.png is not_an_image" in capsys.readouterr().err
