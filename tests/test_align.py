"""Alignment: the similarity exactly, the crop against a known placement of a sample face."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from faces.align import Alignment, align_face, aligned, crops_of, five_points, is_aligned, main
from faces.detect import Finder
from faces.reader import ImageError, read_image
from faces.template import ARCFACE_POINTS, similarity_transform, warp

FACE = read_image(Path(__file__).parents[1] / "samples" / "astronaut.png")


def place(face: np.ndarray, scale: float, degrees: float, x: float, y: float, width: int, height: int) -> np.ndarray:
    """A grey picture with the crop in it, scaled and turned about its centre, which comes to (x, y)."""
    matrix = cv2.getRotationMatrix2D((55.5, 55.5), degrees, scale)
    matrix[:, 2] += np.array([x, y]) - 55.5
    grey = (128, 128, 128)
    return cv2.warpAffine(face, matrix, (width, height), flags=cv2.INTER_CUBIC, borderValue=grey)


def difference(crop: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference of the middle of two crops, slightly smoothed, in grey levels."""
    smooth = [cv2.GaussianBlur(image, (0, 0), 2)[20:100, 20:92].astype(float) for image in (crop, reference)]
    return float(np.abs(smooth[0] - smooth[1]).mean())


@given(st.floats(0.05, 20), st.floats(-3.1, 3.1), st.floats(-500, 500), st.floats(-500, 500))
def test_a_similarity_is_recovered_exactly(scale: float, angle: float, x: float, y: float) -> None:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    points = (ARCFACE_POINTS - (x, y)) @ np.linalg.inv([[c, -s], [s, c]]).T
    matrix = similarity_transform(points, ARCFACE_POINTS)
    np.testing.assert_allclose(matrix, [[c, -s, x], [s, c, y]], atol=1e-6 * (1 + scale))


def test_the_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    points = ARCFACE_POINTS * 3 + rng.normal(0, 5, (5, 2))
    rows = [row for x, y in points for row in ((x, -y, 1, 0), (y, x, 0, 1))]   # of a, b, x, y
    (a, b, x, y), *_ = np.linalg.lstsq(np.array(rows), ARCFACE_POINTS.ravel(), rcond=None)
    np.testing.assert_allclose(similarity_transform(points, ARCFACE_POINTS), [[a, -b, x], [b, a, y]], atol=1e-9)
    mirrored = similarity_transform(ARCFACE_POINTS * (-1, 1), ARCFACE_POINTS)
    assert np.linalg.det(mirrored[:, :2]) > 0, "a face is never mirrored"


@pytest.mark.parametrize(
    ("scale", "degrees", "x", "y", "width", "height"),
    [
        (1, 0, 150, 150, 300, 300),
        (2.5, 15, 300, 200, 640, 400),
        (6, -20, 700, 800, 1400, 1600),
        (1.2, 10, 1200, 300, 2000, 900),
        (0.6, 0, 40, 40, 80, 80),
    ],
)
def test_a_placed_face_comes_back(scale: float, degrees: float, x: float, y: float, width: int, height: int) -> None:
    picture = place(FACE, scale, degrees, x, y, width, height)
    crop = align_face(picture)
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    assert difference(crop, FACE) < 9
    assert difference(crop[:, ::-1], FACE) > 12, "the measure would see a mirrored face"


def test_the_largest_face_wins() -> None:
    picture = place(FACE, 2, 0, 250, 250, 900, 500)
    picture[100:300, 600:900] = place(FACE[:, ::-1], 1.1, 0, 150, 100, 300, 200)
    assert five_points(picture)[:, 0].max() < 400
    assert difference(align_face(picture), FACE) < 8


def test_another_size_is_the_same_crop_enlarged() -> None:
    picture = place(FACE, 4, 5, 400, 400, 800, 800)
    large = align_face(picture, 224)
    assert large.shape == (224, 224, 3)
    assert difference(cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA), align_face(picture)) < 4


def test_what_lies_outside_the_picture_is_black() -> None:
    crop = warp(np.full((112, 112, 3), 200, np.uint8), ARCFACE_POINTS - (30, 0), ARCFACE_POINTS, 112)
    assert (crop[:, :29] == 0).all()
    assert (crop[:, 31:] == 200).all()


def test_a_large_source_does_not_alias() -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = warp(stripes, (ARCFACE_POINTS + 0.5) * 10 - 0.5, ARCFACE_POINTS, 112)
    assert np.abs(crop.astype(int) - 128).max() <= 2


def test_shrinking_moves_nothing() -> None:
    rng = np.random.default_rng(0)
    crop = cv2.GaussianBlur(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8), (0, 0), 3)
    large = np.repeat(np.repeat(crop, 5, axis=0), 5, axis=1)
    back = warp(large, (ARCFACE_POINTS + 0.5) * 5 - 0.5, ARCFACE_POINTS, 112)
    assert np.abs(back.astype(int) - crop)[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("shape", [(112, 112, 3), (300, 200, 3), (1, 1, 3), (3000, 2, 3)])
def test_no_face(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ImageError) as caught:
        align_face(np.full(shape, 90, np.uint8))
    assert caught.value.status == "no_face"


def test_only_112_by_112_counts_as_aligned() -> None:
    assert is_aligned(FACE)
    assert not is_aligned(FACE[:111])
    assert not is_aligned(np.zeros((224, 224, 3), np.uint8))


def test_aligned_follows_the_choice() -> None:
    photo = place(FACE, 2, 10, 200, 150, 400, 300)
    assert aligned(FACE, "auto") is FACE
    assert aligned(photo, "no") is photo
    np.testing.assert_array_equal(aligned(photo, "auto"), align_face(photo))
    np.testing.assert_array_equal(aligned(FACE, "yes"), align_face(FACE))
    with pytest.raises(ImageError, match="no face"):
        aligned(np.zeros((50, 60, 3), np.uint8), "auto")


def test_a_folder_of_photographs_becomes_a_folder_of_crops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, crops = tmp_path / "photos", tmp_path / "crops"
    photo = place(FACE, 2, 10, 200, 150, 400, 300)
    for name, picture in {"ann/1.png": photo, "ann/1.bmp": photo, "b/c/2.png": photo, "b/crop.png": FACE,
                          "grey.png": np.full((150, 150, 3), 90, np.uint8)}.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(photos / name)
    assert main([str(photos), "--output", str(crops), "--workers", "0"]) == 1
    assert capsys.readouterr().err == f"{photos}/grey.png: no_face\n"
    found = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.*"))
    assert found == ["ann/1.bmp.jpg", "ann/1.png.jpg", "b/c/2.jpg", "b/crop.png"]
    assert (crops / "b/crop.png").read_bytes() == (photos / "b/crop.png").read_bytes()
    crop = read_image(crops / "b/c/2.jpg")
    assert is_aligned(crop)
    assert difference(crop, align_face(photo)) < 2


def test_folders_that_cannot_be_aligned_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for folder, output in (("photos", "photos/crops"), ("photos", "crops"), ("absent", "crops")):
        assert main([str(tmp_path / folder), "--output", str(tmp_path / output)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_known_points_need_no_search() -> None:
    photo = place(FACE, 2, 10, 200, 150, 400, 300)
    points = five_points(photo)
    (crop,) = crops_of(photo, Alignment(), points)
    np.testing.assert_array_equal(crop.pixels, align_face(photo))
    assert (crop.placed.aligned_by, crop.placed.detection, crop.placed.face) == ("points", None, 0)
    assert len(crops_of(photo, Alignment("no"), np.stack([points, points]))) == 2
    one_place = np.full((5, 2), 0.1)
    flat = one_place, np.stack([points, one_place])
    for wrong in (points[:4], points.T, points * np.nan, np.zeros((2, 2, 5, 2)), *flat):
        with pytest.raises(ValueError, match="points"):
            crops_of(photo, Alignment(), wrong)


def test_every_crop_says_how_it_came() -> None:
    photo = place(FACE, 2, 10, 200, 150, 400, 300)
    photo[:, 300:] = place(FACE, 0.8, 0, 50, 150, 100, 300)
    crops = crops_of(photo, Alignment("auto", Finder("all")))
    assert [(crop.placed.face, crop.placed.faces, crop.placed.aligned_by) for crop in crops] == [
        (0, 2, "center-face"),
        (1, 2, "center-face"),
    ]
    placed = crops[0].placed
    assert placed.detection is not None
    assert 0.5 < placed.detection <= 1
    assert placed.box is not None
    assert placed.points is not None
    assert (len(placed.box), len(placed.points)) == (4, 10)
    assert crops_of(photo, Alignment("no"))[0].placed.aligned_by == "none"


def test_a_picture_of_the_right_size_is_looked_at() -> None:
    (crop,) = crops_of(FACE, Alignment(check=True))
    assert crop.pixels is FACE
    assert crop.placed.aligned_by == "crop"
    moved = np.roll(FACE, (40, 50), axis=(0, 1))
    assert crops_of(moved, Alignment(check=True))[0].placed.aligned_by == "doubtful"
    assert crops_of(moved, Alignment())[0].placed.aligned_by == "crop", "only when it was asked"
    with pytest.raises(ImageError) as caught:
        crops_of(np.full((112, 112, 3), 90, np.uint8), Alignment(check=True))
    assert caught.value.status == "no_face"


def two_faces() -> np.ndarray:
    photo = place(FACE, 2, 10, 200, 150, 400, 300)
    photo[:, 300:] = place(FACE, 0.8, 0, 50, 150, 100, 300)
    return photo


def test_all_faces_of_a_folder_are_in_its_table(tmp_path: Path) -> None:
    photo = two_faces()
    (tmp_path / "photos").mkdir()
    for name, picture in {"two.png": photo, "crop.png": FACE, "none.png": np.full((90, 90, 3), 7, np.uint8)}.items():
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    arguments = [str(tmp_path / "photos"), "--output", str(tmp_path / "crops"), "--faces", "all", "--workers", "0"]
    assert main(arguments) == 1
    with open(tmp_path / "crops.faces.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["status"], row["face"], row["crop"]) for row in rows] == [
        ("crop.png", "ok", "", "crop.png"),
        ("none.png", "no_face", "", ""),
        ("two.png", "ok", "0", "two.jpg"),
        ("two.png", "ok", "1", "two_face1.jpg"),
    ]
    assert {path.name for path in (tmp_path / "crops").iterdir()} == {"crop.png", "two.jpg", "two_face1.jpg"}
    assert len(rows[2]["points"].split()) == 10
    assert main([*arguments, "--rotate", "auto", "--detector", "absent.onnx"]) == 2


def test_no_crop_overwrites_another(tmp_path: Path) -> None:
    """Names of pictures may be those of crops: of a second face, or of a picture whose stem is repeated."""
    (tmp_path / "photos").mkdir()
    names = ["a.bmp", "a.png", "a.png.png", "b.png", "b_face1.png", "b_face1~2.jpg", "c.jpg"]
    for name in names:
        picture = FACE if name == "b_face1~2.jpg" else two_faces()
        Image.fromarray(picture).save(tmp_path / "photos" / name, quality=95)
    flags = ["--faces", "all", "--workers", "0"]
    assert main([str(tmp_path / "photos"), "--output", str(tmp_path / "crops"), *flags]) == 0
    with open(tmp_path / "crops.faces.csv", encoding="utf-8") as file:
        crops = {(row["path"], row["face"]): row["crop"] for row in csv.DictReader(file)}
    assert len(crops) == 13
    assert sorted(crops.values()) == sorted(path.name for path in (tmp_path / "crops").iterdir())
    assert [crops["a.png", "0"], crops["a.png.png", "0"]] == ["a.png.jpg", "a.png~2.jpg"]
    assert crops["b_face1~2.jpg", ""] == "b_face1~2.jpg"
    assert [crops["b.png", "0"], crops["b.png", "1"]] == ["b.jpg", "b_face1~3.jpg"]
    assert [crops["b_face1.png", "0"], crops["c.jpg", "1"]] == ["b_face1.jpg", "c_face1.jpg"]


def test_crops_without_loss(tmp_path: Path) -> None:
    picture = place(FACE, 1.6, 8, 150, 140, 320, 300)
    (tmp_path / "photographs").mkdir()
    Image.fromarray(picture).save(tmp_path / "photographs" / "a.png")
    assert main([str(tmp_path / "photographs"), "--output", str(tmp_path / "crops"), "--format", "png"]) == 0
    assert [path.name for path in (tmp_path / "crops").iterdir()] == ["a.png"]
    crop, expected = (x.astype(int) for x in (read_image(tmp_path / "crops" / "a.png"), align_face(picture)))
    assert np.abs(crop - expected).max() <= 1, "the number of threads may change the rounding of a pixel, JPEG far more"
