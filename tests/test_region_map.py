"""The map of what lowers a score finds what was painted over a face, for any method and axis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import recipe
from PIL import Image
from recipe_tensors import save_tiny_clib_fiqa

import inference
from faces.degradations import in_face
from faces.reader import read_image
from model.prompts import AXES
from scoring import Scorer
from scoring.region_map import MEAN_FACE, REGIONS, SIDE, map_regions, mean_face, ordinary_face, region_boxes
from scoring.select import write_maps

SAMPLES = Path(__file__).parents[1] / "samples"
FACE = read_image(SAMPLES / "astronaut.png")


def painted(left: int, top: int, side: int = 28) -> np.ndarray:
    face = FACE.copy()
    cv2.rectangle(face, (left, top), (left + side, top + side), (40, 160, 60), -1)
    return face


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(device="cpu", batch_size=32)


@pytest.mark.parametrize(("left", "top"), [(26, 40), (58, 74)])
def test_a_painted_patch_is_found(left: int, top: int, scorer: Scorer) -> None:
    found = scorer.region_map(painted(left, top))
    assert found.value == pytest.approx(scorer.score(painted(left, top)).quality, abs=1e-5)
    x, y = found.peak
    assert left <= x <= left + 28
    assert top <= y <= top + 28
    assert found.effect[y, x] > 0


def test_the_occluded_sample_is_lowered_by_its_scarf(scorer: Scorer) -> None:
    for axis in ("quality", "occlusion"):
        regions = scorer.region_map(SAMPLES / "astronaut_occluded.png", axis).regions
        assert next(iter(regions)) in {"nose", "mouth", "left cheek", "right cheek", "chin"}
        assert regions["mouth"] > regions["forehead"]


def test_the_effect_is_largest_where_the_value_is_read() -> None:
    """With a value that is known: the mean grey of a window of the crop."""

    def values(crops: list[np.ndarray]) -> np.ndarray:
        return np.array([crop[40:64, 40:64].mean() for crop in crops])

    found = map_regions(painted(36, 36, 32), "quality", values)
    assert found.effect.shape == (112, 112)
    change = ordinary_face(painted(36, 36, 32))[40:64, 40:64].mean() - found.value
    assert np.sign(found.effect[52, 52]) == np.sign(change)
    assert abs(found.effect[100, 56]) < 0.01 * np.abs(found.effect).max()
    y, x = np.unravel_index(int(np.abs(found.effect).argmax()), (112, 112))
    assert 40 <= x < 64
    assert 40 <= y < 64


def test_regions_cover_the_face() -> None:
    covered = np.zeros((112, 112), bool)
    for left, top in region_boxes():
        covered[top : top + SIDE, left : left + SIDE] = True
    y, x = np.mgrid[0:112, 0:112]
    assert covered[in_face(x, y)].mean() > 0.99
    assert len(region_boxes()) < 110
    assert all(x1 > x0 and y1 > y0 and y1 <= 112 for x0, y0, x1, y1 in REGIONS.values())


def test_the_mean_face_is_symmetric_and_takes_the_colours_of_the_other() -> None:
    assert MEAN_FACE.stat().st_size < 20_000
    np.testing.assert_array_equal(mean_face(), mean_face()[:, ::-1])
    fill = ordinary_face(FACE)
    y, x = np.mgrid[0:112, 0:112]
    face = in_face(x, y)
    assert np.median(fill[face], axis=0) == pytest.approx(np.median(FACE[face], axis=0), abs=12)
    assert ordinary_face(cv2.resize(FACE, (224, 224))).shape == (224, 224, 3)


def test_crops_of_any_size_and_every_axis(tmp_path: Path, golden: Path) -> None:
    tiny = Scorer(weights=save_tiny_clib_fiqa(tmp_path / "tiny.safetensors", golden), device="cpu")
    size = tiny.prepare(FACE, "").crops.shape[1]
    for axis in AXES:
        found = tiny.region_map(FACE, axis)
        assert found.effect.shape == (112, 112)
        assert np.isfinite(found.effect).all()
        assert found.crop.shape == (112, 112, 3)
    assert size != 112, "a network of another size was meant"
    with pytest.raises(ValueError, match="no axis 'beauty': expected one of quality, blur"):
        tiny.region_map(FACE, "beauty")


def test_inference_writes_a_picture_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "faces").mkdir()
    Image.fromarray(recipe.mirror_image(1)).save(tmp_path / "faces" / "a.png")
    Image.fromarray(recipe.mirror_image(2)).save(tmp_path / "faces" / "a.jpg")
    (tmp_path / "faces" / "b.png").write_text("no picture")
    call = [str(tmp_path / "faces"), "--weights", "clib-fiqa", "--map", str(tmp_path / "maps"), "--map-of", "blur"]
    assert inference.main([*call, "--output", str(tmp_path / "scores.csv")]) == 1
    assert "2 maps -> " in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [f"a.{image}.{kind}" for image in ("jpg", "png") for kind in ("json", "npy", "png")]
    record = json.loads((tmp_path / "maps" / "a.png.json").read_text())
    assert record["axis"] == "blur"
    assert record["regions"].keys() == REGIONS.keys()
    effect = np.load(tmp_path / "maps" / "a.png.npy")
    assert effect[record["peak"][1], record["peak"][0]] == effect.max()
    with Image.open(tmp_path / "maps" / "a.png.png") as image:
        assert image.size == (448, 448)
    assert inference.main([*call[:-3], str(tmp_path / "faces" / "maps")]) == 2
    assert "would be images of" in capsys.readouterr().err
    one = [str(SAMPLES / "astronaut.png"), "--weights", "clib-fiqa", "--map", str(tmp_path / "one")]
    assert inference.main(one) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("quality prediction")
    assert len(list((tmp_path / "one").iterdir())) == 3


def test_each_selected_face_has_a_map_of_its_own(tmp_path: Path) -> None:
    group = Image.new("RGB", (400, 240), (90, 100, 110))
    group.paste(Image.open(SAMPLES / "astronaut_blurred.png").convert("RGB").resize((200, 200)), (0, 20))
    group.paste(Image.open(SAMPLES / "astronaut.png").convert("RGB").resize((170, 170)), (220, 35))
    group.save(tmp_path / "group.png")
    call = [str(tmp_path / "group.png"), "--faces", "all", "--min-face-size", "60"]
    table, every, best = tmp_path / "scores.jsonl", tmp_path / "every", tmp_path / "best"
    assert inference.main([*call, "--output", str(table), "--map", str(every)]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    names = ["group.png", "group_face1.png"]
    assert sorted(path.name for path in every.glob("*.json")) == [f"{name}.json" for name in names]
    values = [json.loads((every / f"{name}.json").read_text())["value"] for name in names]
    assert values == pytest.approx([row["quality"] for row in rows], abs=1e-5)
    assert values[1] > values[0] + 0.05, "the smaller face was meant to be the better one"
    assert inference.main([*call, "--best-per", "folder", "1", "--map", str(best)]) == 0
    assert [path.name for path in best.glob("*.json")] == ["group_face1.png.json"]
    assert (best / "group_face1.png.npy").read_bytes() == (every / "group_face1.png.npy").read_bytes()
    with pytest.raises(ValueError, match="face 2 was wanted, and the image has 2"):
        Scorer(faces="all", min_face_size=60).region_map(tmp_path / "group.png", face=2)


def test_a_picture_is_read_once_for_the_maps_of_its_faces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, list[int]]] = []

    def region_maps(path: str, faces: list[int]) -> Iterator[Any]:
        asked.append((path, faces))
        return iter([SimpleNamespace(write=lambda target, face=face: target.write_text(str(face))) for face in faces])

    faces = [("in/a.png", 0), ("in/a.png", 2), ("in/b.png", 1)]
    assert write_maps(lambda: iter(faces), tmp_path / "maps", region_maps) == 3
    assert asked == [("in/a.png", [0, 2]), ("in/b.png", [1])]
    written = {path.name: path.read_text() for path in (tmp_path / "maps").iterdir()}
    assert written == {"a.png": "0", "a_face2.png": "2", "b_face1.png": "1"}
