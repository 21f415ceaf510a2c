"""The checks of benchmarks/walk_through.py can fail, and its pictures are what their kind says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.walk_through import Picture, Row, check_best, check_row, got_it, placed, quarter_turned, save
from faces.reader import read_image
from faces.template import ARCFACE_POINTS

POINTS = " ".join(map(str, ARCFACE_POINTS.ravel()))
ROW: Row = {
    "path": "photos/ann/0.jpg", "status": "ok", "quality": "0.5", "face": "0", "box": "0 0 9 9", "points": POINTS,
    "detection": "0.9", "aligned_by": "center-face", "band": "low", "reasons": "occluded=0.9", "advice": "Take it off.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"band": ""}, "no band"),
        ({"points": "", "face": ""}, "no face, points"),
        ({"reasons": "", "advice": ""}, "low without a reason"),
        ({"advice": ""}, "without an advice"),
        ({"status": "no_face"}, "a score and the status no_face"),
    ],
)
def test_a_row_that_leaves_a_question_open_is_an_error(change: dict[str, str], message: str) -> None:
    check_row(ROW)
    with pytest.raises(RuntimeError, match=message):
        check_row(ROW | change)


def test_each_kind_is_judged_by_what_it_should_get() -> None:
    nothing = ROW | {"status": "no_face", "quality": "", "reasons": ""}
    here = Picture("portrait", Path("a.jpg"), ARCFACE_POINTS)
    assert got_it(here, [ROW])
    assert not got_it(here._replace(points=ARCFACE_POINTS + 60), [ROW]), "another face"
    assert not got_it(here, [nothing])
    assert not got_it(here._replace(kind="dark"), [ROW])
    assert got_it(here._replace(kind="dark"), [ROW | {"reasons": "bad_lighting=0.8;cut_off=0.2"}])
    assert got_it(here._replace(kind="far away"), [ROW | {"reasons": "small_face=30"}])
    assert got_it(here._replace(kind="group of three"), [ROW | {"faces": "3"}] * 3)
    assert not got_it(here._replace(kind="group of three"), [ROW | {"faces": "3"}] * 2)
    assert got_it(Picture("without a face", Path("b.jpg")), [nothing])
    assert not got_it(Picture("broken", Path("c.jpg")), [nothing])
    assert got_it(Picture("broken", Path("c.jpg")), [nothing | {"status": "truncated"}])


def test_the_best_shots_must_be_the_copied_ones(tmp_path: Path) -> None:
    rows = {f"photos/ann/{i}.jpg": [ROW | {"path": f"photos/ann/{i}.jpg", "quality": str(0.1 * i)}] for i in range(5)}
    (tmp_path / "ann").mkdir()
    for i in (2, 3, 4):
        (tmp_path / "ann" / f"{i}.jpg").touch()
    check_best(rows, tmp_path)
    (tmp_path / "ann" / "4.jpg").unlink()
    with pytest.raises(RuntimeError, match="the best of ann"):
        check_best(rows, tmp_path)


def test_pictures_keep_their_points(tmp_path: Path) -> None:
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[10, 50] = 255
    for turns in range(4):
        turned, points = quarter_turned(rgb, np.array([[50.0, 10.0]]), turns)
        (x, y), = points.astype(int)
        assert turned[y, x, 0] == 255
    picture, points = placed(np.full((200, 200, 3), 255, np.uint8), ARCFACE_POINTS, 26, (480, 640))
    assert picture.shape == (480, 640, 3)
    assert 2 * np.linalg.norm(points[:2].mean(axis=0) - points[3:].mean(axis=0)) == pytest.approx(26)
    path = save(tmp_path / "a" / "b.jpg", "portrait", rgb, exif=True).path
    with Image.open(path) as stored:
        assert stored.size == (40, 60), "stored on its side"
    assert read_image(path).shape == (40, 60, 3), "and read upright"
