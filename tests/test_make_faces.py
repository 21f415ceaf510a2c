"""The folder of faces that the default model learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recipe
from PIL import Image

from recipes.default_model import make_faces
from recipes.default_model.crops import cfp_faces, factor_faces, factor_rows, is_held_out, is_oblique
from recipes.default_model.make_faces import Face, make_versions, web_faces


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(recipe.mirror_image(seed, 112)).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ann of LFW, who is person 001 of CFP; Bob of LFW has one photograph; 002 of CFP is nobody who may train."""
    folder = tmp_path / "data"
    for index, name in enumerate(("lfw/Ann/Ann_0001.png", "lfw/Bob/Bob_0001.png", "cfp/001/f01.png", "cfp/001/p01.png",
                                  "cfp/002/f01.png", "celeba/7201/1.png")):  # fmt: skip
        save(folder / "faces" / name, index)
    (folder / "splits").mkdir()
    (folder / "splits" / "lfw_train_identities.txt").write_text("Ann\nBob\n")
    (folder / "faces" / "celeba_suspects.txt").write_text("")
    (folder / "faces" / "cfp_identities.tsv").write_text("cfp\tlfw\n001\tAnn\n002\tTest_Person\n")
    (folder / "factors").mkdir()
    rows = ["path\tlabel\tcondition\tsubject\tsource\tangle"]
    lights = (("a", 10, "normal lighting"), ("a", 30, ""), ("a", 40, ""), ("b", 60, "extreme lighting"))
    for subject, angle, label in lights:
        rows.append(f"{subject}/{angle}.png\t{label}\tx\t{subject}\tyale-b\t{angle}")
    (folder / "factors" / "illumination_b.tsv").write_text("\n".join([*rows, ""]))
    return folder


def test_a_person_of_two_sets_is_one_identity(data: Path) -> None:
    assert [(name, path.name) for name, path in cfp_faces(data)] == [("Ann", "f01.png"), ("Ann", "p01.png")]
    found = web_faces(data, min_images=3, copies=2)
    names = ("Ann_0001.png", "cfp_f01.png", "cfp_p01.png")
    assert sorted(face.path for face in found) == [f"faces/Ann/{name}" for name in names]
    assert {face.identity for face in found} == {"Ann"}


def test_light_without_a_label_trains_from_35_degrees_on(data: Path) -> None:
    rows = factor_rows(data, "illumination_b", held_out=None)
    assert [is_oblique(row) for row in rows] == [False, False, True, False]
    held_out = {subject for subject in "ab" if is_held_out(subject)}
    names = [path.name for path in factor_faces(data, "illumination_b")]
    assert names == [n for n, s in (("10.png", "a"), ("60.png", "b")) if s not in held_out]


def test_the_last_versions_are_not_damaged_and_all_follow_from_the_seed(data: Path, tmp_path: Path) -> None:
    face = Face(data / "faces/lfw/Ann/Ann_0001.png", "factors/posed/Ann_Ann_0001.png", "", copies=9, undamaged=6)
    rows = make_versions(5, face, tmp_path / "a", seed=1)
    assert [row[0] for row in rows] == [f"factors/posed/Ann_Ann_0001~{copy}.png" for copy in range(1, 10)]
    assert all(row[1:] == [2, 1, 1, ""] for row in rows[3:])
    assert rows[0][4], "the first version is always damaged"
    assert make_versions(5, face, tmp_path / "b", seed=1) == rows
    for row in rows:
        assert (tmp_path / "a" / row[0]).read_bytes() == (tmp_path / "b" / row[0]).read_bytes()


def test_the_dark_side_of_a_face_is_no_border(data: Path) -> None:
    """The border of Extended Yale B is what is black under all lights of a person."""
    folder = data / "factors" / "illumination_b" / "a"
    folder.mkdir(parents=True)
    for side in (slice(0, 56), slice(56, 112)):
        image = np.zeros((112, 112, 3), np.uint8)
        image[20:92, side] = 200
        image[:, :10] = image[:, -10:] = 0
        Image.fromarray(image).save(folder / f"{side.start}.png")
    border = make_faces.frame_of(folder)
    assert border[:20].all()
    assert border[:, :10].all()
    assert not border[30:80, 20:92].any()
