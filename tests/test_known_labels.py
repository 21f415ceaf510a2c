"""The label table of the training faces: what people, angles and landmarks say comes before what the network sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labels.anchors import photo_of
from labels.label_table import Label, read_labels
from model.prompts import AXES
from recipes.default_model import known_labels, landmarks
from recipes.default_model.crops import is_held_out
from recipes.default_model.known_labels import judge, label_of, smile_label, with_damage
from recipes.default_model.landmarks import OPEN, SHUT, key_of, landmarks_of, mouth_opening, yaw_of

SEEN = {"blur": 2, "pose": 2, "expression": 0, "illumination": 1, "occlusion": 1}


def label(path: str, **factors: int) -> Label:
    known = {"blur": 2, "pose": 2, "expression": 1, "illumination": 1, "occlusion": 1} | factors
    return Label(path, None, **known, identity=path.split("/")[1], status="ok")


def face(opening: float) -> np.ndarray:
    """Landmarks of a frontal face, 40 pixels between the eyes, with this mouth opening."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = (36, 50), (76, 50)
    points[61:64, 1] = 80
    points[65:68, 1] = 80 + 40 * opening
    return points


def test_folders_of_one_name_are_told_apart() -> None:
    """A version takes pose and expression of its own original, and the worse of the rest."""
    first, second = label("faces/ann/1.jpg", pose=0), label("factors/ann/1.jpg", expression=0, occlusion=0)
    originals = {photo_of(original.path): original for original in (first, second)}
    assert len(originals) == 2
    done = {"blur": "1", "illumination": "0", "occlusion": "1"}
    assert with_damage({"path": "faces/ann/1~1.png", **done}, originals) == label(
        "faces/ann/1~1.png", pose=0, blur=1, illumination=0
    )
    assert with_damage({"path": "factors/ann/1~1.png", **done}, originals) == label(
        "factors/ann/1~1.png", expression=0, blur=1, illumination=0, occlusion=0
    )
    with pytest.raises(ValueError, match=r"1~1\.png is a version of a photograph that has no row"):
        with_damage({"path": "faces/bob/1~1.png", **done}, originals)


def test_a_smile_is_exaggerated_when_the_mouth_is_open() -> None:
    assert mouth_opening(face(0.3)) == pytest.approx(0.3)
    assert [smile_label(gap) for gap in (None, SHUT, (SHUT + OPEN) / 2, OPEN)] == [1, 1, 1, 0]
    row = {"path": "faces/Ann/1.jpg", "identity": "Ann"}
    assert label_of(row, SEEN, face(OPEN + 0.01), {}).expression == 0
    assert label_of(row, SEEN, face(SHUT - 0.01), {}).expression == 1
    assert label_of(row, SEEN, face(SHUT - 0.01), {"expression": 0}).expression == 0
    assert label_of(row, SEEN, face(OPEN + 0.01), {"expression": -1}).expression == 0
    assert label_of(row, SEEN, face(SHUT - 0.01), {"expression": -1}).expression == 1


def test_human_labels_of_expressions_hold_for_held_out_people_too(tmp_path: Path) -> None:
    names = [f"Person_{index}" for index in range(11)]   # the tenth and the eleventh: held out, and a training one
    folder = tmp_path / "factors"
    folder.mkdir()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "lfw_train_identities.txt").write_text("\n".join(names))
    head = "path\tlabel\tcondition\tsubject\tsplit\tangle\n"
    for name in known_labels.HELD:
        (folder / f"{name}.tsv").write_text(head)
    (folder / "expression.tsv").write_text(f"{head}y/1.jpg\texaggerated expression\thappiness\ts3\tx\t\n")
    conditions = ("anger", "happiness", "neutral")
    labels = {"anger": "exaggerated expression", "happiness": "", "neutral": "typical expression"}
    faces = [(name, mood) for name in names[8:] for mood in conditions]
    rows = [f"{name}/{mood}.jpg\t{labels[mood]}\t{mood}\t{name}\ttrain\t\n" for name, mood in faces]
    (folder / "expression_lfw.tsv").write_text(head + "".join(rows))
    known = known_labels.known_levels(tmp_path)
    assert [known[f"factors/{name}/{mood}.jpg"]["expression"] for name, mood in faces] == [0, -1, 1] * 3
    assert not is_held_out("s3")
    assert known["factors/y/1.jpg"]["expression"] == 0, "a posed one is at its peak"


def test_pose_comes_from_the_name_of_a_cfp_face_or_from_landmarks() -> None:
    poses = {"cfp_f01.jpg": 2, "cfp_p01.jpg": 0, "1.jpg": SEEN["pose"]}
    for name, pose in poses.items():
        assert label_of({"path": f"faces/Ann/{name}", "identity": "Ann"}, SEEN, None, {}).pose == pose
    nameless = label_of({"path": "factors/occlusion/1.jpg", "identity": ""}, SEEN, None, {"occlusion": 0})
    assert (nameless.identity, nameless.occlusion) == (None, 0)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = tmp_path / "data", tmp_path / "out"
    paths = ["faces/Ann/1.png", "faces/Ann/1~1.png", "factors/occlusion/a_1.png"]
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((112, 112, 3), 50 * index, np.uint8)).save(folder / path)
    rows = [(paths[0], "faces/lfw/Ann/1.png", "Ann"), (paths[2], "factors/a/1.png", "")]
    (folder / "originals.tsv").write_text("\n".join(["path\tsource\tidentity", *map("\t".join, rows), ""]))
    (folder / "damage.tsv").write_text(
        "path\tblur\tillumination\tocclusion\tkinds\nfaces/Ann/1~1.png\t2\t0\t1\tdark:0.50\n"
    )
    monkeypatch.setattr(known_labels, "known_levels", lambda data: {"factors/a/1.png": {"occlusion": 0}})
    monkeypatch.setattr(known_labels, "landmarks_of", lambda paths, cache: {key_of(path): None for path in paths})
    assert known_labels.main([str(folder), "--data", str(data)]) == 0
    found = read_labels(folder / "known.tsv")
    assert [row.path for row in found] == paths
    assert [row.illumination for row in found][1] == 0
    assert [row.occlusion for row in found][2] == 0
    assert [row.identity for row in found] == ["Ann", "Ann", None]

    (folder / paths[2]).write_text("not a picture")
    assert known_labels.main([str(folder), "--data", str(data)]) == 2
    assert "a_1.png is not_an_image" in capsys.readouterr().err


def test_the_factor_network_answers_in_levels_of_the_axes() -> None:
    samples = Path(__file__).parents[1] / "samples"
    clear, occluded = judge([str(samples / f"{name}.png") for name in ("astronaut", "astronaut_occluded")], "mfn")
    assert all(0 <= level < len(AXES[factor]) for factor, level in clear.items())
    assert (clear["blur"], clear["pose"], clear["occlusion"], occluded["occlusion"]) == (2, 2, 1, 0)


def test_landmarks_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Path(__file__).parents[1] / "samples"
    paths = [tmp_path / "faces" / f"{name}.png" for name in ("astronaut", "cameraman_turned")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes((samples / path.name).read_bytes())
    cache = tmp_path / "runs" / "landmarks.npz"
    found = landmarks_of(paths[:1], cache)
    assert list(found) == ["faces/astronaut.png"]
    yaw = yaw_of(paths, cache)
    assert abs(yaw["faces/astronaut.png"] or 90) < 15
    monkeypatch.setattr(landmarks, "ProcessPoolExecutor", None)
    assert yaw_of(paths, cache) == yaw
