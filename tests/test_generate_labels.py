"""generate_labels.py from a folder of pictures to a table that train.py reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from recipe_tensors import recipe_tensors
from skimage.data import astronaut

import generate_labels
from faces.align import align_face
from faces.blur import blur_class, sharpness
from faces.dlib_models import find_landmarks
from faces.pose import euler_angles, pose_class
from faces.reader import read_image
from labels import factors, generate, measure
from labels.anchors import EmbeddedFaces, Header, centre_similarities, load_header, quality_anchor
from labels.label_table import Label, read_labels, resolve
from labels.recognition import load_recognizer
from model.checkpoint import save_checkpoint
from model.files import only_run
from model.iresnet import IResNet
from model.loading import load
from model.prompts import AXES

Run = Callable[..., int]
SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="session")
def astronaut_crop() -> np.ndarray:
    return align_face(astronaut())


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """A folder with a small FR model, its header of four classes, and a factor network."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    save_checkpoint(folder / "7backbone.safetensors", IResNet((1, 1, 1, 1), (4, 4, 8, 8), 16).state_dict(), {})
    save_checkpoint(folder / "7header.safetensors", {"kernel": torch.randn(16, 4)}, {})
    save_checkpoint(folder / "mfn.safetensors", recipe_tensors(golden / "mfn_keys.json"), {})
    return folder


@pytest.fixture
def run(networks: Path, tmp_path: Path) -> Run:
    """generate_labels.py on tmp_path/faces with those networks; the table is tmp_path/out/labels.tsv."""
    options = {"--data": tmp_path / "faces", "--output": tmp_path / "out" / "labels.tsv", "--workers": 0,
               "--fr": networks / "7backbone.safetensors", "--mfn": networks / "mfn.safetensors", "--batch-size": 4}

    def call(*extra: str | Path, **changed: object) -> int:
        merged = options | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        return generate_labels.main([str(word) for pair in merged.items() for word in pair] + list(map(str, extra)))

    return call


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "out" / "labels.tsv"


def save_faces(folder: Path, crop: np.ndarray, people: dict[str, int]) -> None:
    """So many turned and toned copies of a face for each name: not people, but pictures of which all differ."""
    turned = iter(range(1000))
    for name, count in people.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            turn = cv2.getRotationMatrix2D((56, 56), 3 * next(turned) % 20 - 10, 1)
            picture = cv2.warpAffine(crop, turn, (112, 112), borderMode=cv2.BORDER_REFLECT)
            Image.fromarray(np.roll(picture, len(name), axis=2)).save(folder / name / f"{index:04}.png")


def skipped_in(table: Path) -> dict[str, str]:
    side = Path(f"{table}.skipped.tsv")
    lines = side.read_text().splitlines()[1:] if side.exists() else []
    return dict(line.split("\t") for line in lines)


def test_a_folder_becomes_a_table(run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob b": 3, "group/ann": 3, "few": 2})
    Image.fromarray(recipe.mirror_image(3)).save(tmp_path / "faces/ann/pattern.png")
    assert run() == 0
    labels = read_labels(table)
    paths = [label.path for label in labels]
    assert paths == sorted(paths)
    assert [label.identity for label in labels] == ["ann"] * 4 + ["bob b"] * 3 + ["group/ann"] * 3
    assert paths[4] == "../faces/bob b/0000.png"
    assert [label.path for label in labels if label.status == "no_face"] == ["../faces/ann/pattern.png"]
    assert skipped_in(table) == {f"../faces/few/000{index}.png": "few_images" for index in range(2)}
    assert not Path(f"{table}.parts").exists()
    record = json.loads(Path(f"{table}.json").read_text())
    assert record["rows"] == 10
    assert record["skipped"] == {"few_images": 2}
    assert len(record["fr"]["sha256"]) == 64


def test_labels_are_the_published_ones(
    run: Run, table: Path, tmp_path: Path, networks: Path, astronaut_crop: np.ndarray
) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob": 3})
    large = cv2.resize(astronaut_crop, (150, 130))   # blur and pose of the picture as it is, each network its own size
    Image.fromarray(large).save(tmp_path / "faces/ann/large.png")
    run()
    network = load(networks / "mfn.safetensors")
    for label in read_labels(table):
        rgb = read_image(resolve(label, table))
        points = find_landmarks(rgb)
        assert points is not None
        with torch.no_grad():
            image = torch.from_numpy(network.preprocessing.resize(rgb).copy())[None]
            logits = network(network.preprocessing.normalise(image))
        classes = {name: int(values.argmax()) for name, values in logits.items()}
        assert label.blur == blur_class(sharpness(rgb))
        assert label.pose == pose_class(euler_angles(points, rgb.shape[1], rgb.shape[0])[1])
        assert label.expression == int(classes["expression"] == 0)
        assert label.illumination == int(classes["illumination"] == 0)
        assert label.occlusion == int(classes["occlusion"] == 0)


def test_pictures_that_are_no_crops_are_announced(
    run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default they are labelled as published; with --only-crops they have no row."""
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob": 3})
    for name in ("ann/photo.png", "bob/photo.png"):
        Image.fromarray(astronaut()[:200, 150:400]).save(tmp_path / "faces" / name)
    assert run() == 0
    output = capsys.readouterr()
    assert output.err.startswith("warning: 2 of 8 pictures are no aligned crops of 112x112 pixels, such as ")
    assert "faces/ann/photo.png" in output.err
    assert "2 pictures are no aligned crops" in output.out
    assert len(read_labels(table)) == 8
    assert json.loads(Path(f"{table}.json").read_text())["not_aligned"] == 2

    assert run("--only-crops") == 1
    assert skipped_in(table) == {f"../faces/{name}/photo.png": "not_aligned" for name in ("ann", "bob")}
    assert len(read_labels(table)) == 6
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert "2 not_aligned" in output.out


def test_only_crops_are_taken_for_centres(run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray) -> None:
    save_faces(tmp_path / "clean", astronaut_crop, {"ann": 3, "bob": 3})
    Image.fromarray(astronaut()[:200, 150:400]).save(tmp_path / "clean/ann/photo.png")
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 1, "bob": 1})
    assert run("--only-crops", centres=tmp_path / "clean") == 1
    assert skipped_in(table) == {"../clean/ann/photo.png": "not_aligned"}


def test_a_second_run_with_the_same_output_ends_at_once(
    run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob": 3})
    table.parent.mkdir()
    parts = Path(f"{table}.parts")
    parts.mkdir()
    (parts / "of the first run").touch()
    with only_run(table):
        assert run() == 2
    assert "another run is writing" in capsys.readouterr().err
    assert [path.name for path in parts.iterdir()] == ["of the first run"]
    assert run() == 0
    assert sorted(path.name for path in table.parent.iterdir()) == ["labels.tsv", "labels.tsv.json"]


def test_changed_images_do_not_mix_with_those_of_an_interrupted_run(
    run: Run, tmp_path: Path, astronaut_crop: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 4, "bob": 4})

    def stop(*_: object) -> measure.Columns:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "label_faces", stop)
        assert run() == 130
    image = tmp_path / "faces/ann/0000.png"
    times = image.stat()
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns + 1))   # the same size, written later
    assert run("--resume") == 2
    assert "cannot resume: images changed" in capsys.readouterr().err


def test_threads_are_bounded_and_sleep(tmp_path: Path) -> None:
    script = (
        "import os, sys, generate_labels; generate_labels.main(sys.argv[1:]); import cv2, torch; "
        "print(torch.get_num_threads(), cv2.getNumThreads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    paths = ["--data", str(tmp_path), "--output", str(tmp_path / "x.tsv")]
    call = [sys.executable, "-c", script, *paths, "--threads", "3"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=SAMPLES.parent, check=True)
    assert done.stdout.split() == ["3", "3", "PASSIVE"]


def test_the_header_and_the_centres_are_on_the_device_of_the_call(
    run: Run, tmp_path: Path, networks: Path, astronaut_crop: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def centres(*galleries: EmbeddedFaces, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        devices.append(device)
        return centre_similarities(*galleries)

    def header(*arguments: object) -> Header:
        devices.append(arguments[-1])
        return load_header(*arguments[:-1])

    monkeypatch.setattr(generate, "centre_similarities", centres)
    monkeypatch.setattr(generate, "load_header", header)
    save_faces(tmp_path / "faces", astronaut_crop, {"1": 3, "2": 3})
    assert run(device="cpu") == run(device="cpu", header=networks / "7header.safetensors") == 0
    assert devices == [torch.device("cpu")] * 2


@pytest.mark.parametrize("kind", ["ratio", "shifted"])
def test_quality_is_the_anchor_against_class_centres(
    run: Run, table: Path, tmp_path: Path, networks: Path, astronaut_crop: np.ndarray, kind: str
) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob b": 4, "one": 1})   # a centre for others only
    assert run(anchor=kind) == 0
    names = [path.relative_to(tmp_path / "faces").as_posix() for path in sorted((tmp_path / "faces").rglob("*.png"))]
    recognizer = load_recognizer(networks / "7backbone.safetensors")
    crops = np.stack([read_image(tmp_path / "faces" / name) for name in names])
    everyone = EmbeddedFaces(recognizer.embed(crops), names)
    enough = everyone.where([not name.startswith("one") for name in names])
    expected = quality_anchor(*centre_similarities(enough, everyone), kind)
    np.testing.assert_allclose([label.quality for label in read_labels(table)], expected, rtol=1e-4)


def test_workers_and_resuming_change_nothing(
    run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 6, "bob": 6, "cy": 5})
    monkeypatch.setattr(measure, "PART_BATCHES", 1)
    run()
    complete = table.read_bytes()
    run(workers=2)
    assert table.read_bytes() == complete

    table.unlink()
    seen: list[int] = []

    def stop_after(count: int, *arguments: object) -> measure.Columns:
        seen.append(1)
        if len(seen) > count:
            raise KeyboardInterrupt
        return factors.label_faces(*arguments)

    monkeypatch.setattr(generate, "label_faces", partial(stop_after, 2))
    assert run() == 130
    assert not table.exists()
    assert run("--resume", anchor="shifted") == 2   # not the settings of the interrupted run
    seen.clear()
    monkeypatch.setattr(generate, "label_faces", partial(stop_after, 10))
    assert run("--resume") == 0
    assert len(seen) == 3   # of five batches two were there
    assert table.read_bytes() == complete


def test_a_name_that_is_no_utf8_is_labelled(run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray) -> None:
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 3, "bob": 3})
    picture = tmp_path / "faces" / "ann" / os.fsdecode(b"\xe9t\xe9.png")
    picture.write_bytes((tmp_path / "faces/ann/0000.png").read_bytes())
    assert run() == 0
    assert picture in [Path(resolve(label, table)).resolve() for label in read_labels(table)]


def test_what_cannot_be_labelled_is_listed(run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray) -> None:
    faces = tmp_path / "faces"
    save_faces(faces, astronaut_crop, {"ann": 4, "bob": 3, "cut": 3})
    shutil.copy(faces / "bob/0000.png", faces / "loose.png")
    (faces / "ann/text.jpg").write_text("not a picture")
    (faces / "ann/tab\there.png").write_bytes((faces / "ann/0000.png").read_bytes())
    (faces / "cut/0000.png").write_bytes((faces / "cut/0000.png").read_bytes()[:900])
    assert run() == 1
    assert skipped_in(table) == {
        "../faces/loose.png": "no_identity",
        "../faces/ann/text.jpg": "not_an_image",
        "../faces/ann/tab\\there.png": "bad_path",
        "../faces/cut/0000.png": "truncated",
        "../faces/cut/0001.png": "few_images",   # two are left of three
        "../faces/cut/0002.png": "few_images",
    }
    assert {label.identity for label in read_labels(table)} == {"ann", "bob"}


def test_degraded_versions_against_clean_centres(
    run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray
) -> None:
    save_faces(tmp_path / "clean", astronaut_crop, {"ann": 3, "bob": 3})
    for name in ("ann/0000", "ann/0001", "bob/0000"):
        blurred = cv2.GaussianBlur(read_image(tmp_path / f"clean/{name}.png"), (0, 0), 3)
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blurred).save(tmp_path / f"faces/{name}~blur.jpg")
    assert run(centres=tmp_path / "clean") == 0   # one image of bob is enough: his centre has the clean ones
    first = read_labels(table)
    assert [label.identity for label in first] == ["ann", "ann", "bob"]
    Image.fromarray(255 - read_image(tmp_path / "clean/ann/0000.png")).save(tmp_path / "clean/ann/0000.png")
    run(centres=tmp_path / "clean")
    second = read_labels(table)
    assert second[1].quality != first[1].quality
    own_left_out = [abs(b.quality / a.quality - 1) for a, b in zip(first, second, strict=True)]
    assert own_left_out[0] == 0   # ann/0000 has no part in the centre of its own version


def test_a_header_takes_the_place_of_class_centres(
    run: Run, table: Path, tmp_path: Path, networks: Path, astronaut_crop: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    header = tmp_path / "7header.safetensors"
    shutil.copy(networks / "7header.safetensors", header)
    save_faces(tmp_path / "faces", astronaut_crop, {"ann": 1, "bob": 2})   # no minimum: the classes are given
    assert run(header=header) == 2
    assert "ann, bob: which of the 4 classes" in capsys.readouterr().err
    (tmp_path / "7classes.txt").write_text("x\nbob\ny\nann\n")
    save_faces(tmp_path / "faces", astronaut_crop, {"stranger": 1})
    assert run(header=header) == 0
    assert skipped_in(table) == {"../faces/stranger/0000.png": "unknown_identity"}
    labels = read_labels(table)
    kernel = load(header).kernel.detach().numpy()
    images = np.stack([read_image(resolve(label, table)) for label in labels])
    embeddings = load_recognizer(networks / "7backbone.safetensors").embed(images)
    cosines = (embeddings / np.linalg.norm(embeddings, axis=1)[:, None]) @ (kernel / np.linalg.norm(kernel, axis=0))
    own = np.array([3, 1, 1])
    others = np.array([np.delete(row, index).max() for row, index in zip(cosines, own, strict=True)])
    expected = cosines[range(3), own] / np.maximum(others, 1e-3)
    np.testing.assert_allclose([label.quality for label in labels], expected, rtol=1e-3)


def test_wrong_calls_are_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture, networks: Path) -> None:
    (tmp_path / "faces").mkdir()
    calls: list[dict] = [
        {},
        {"data": tmp_path / "nowhere"},
        {"fr": tmp_path / "absent.onnx"},
        {"mfn": networks / "7header.safetensors"},
        {"landmarks": tmp_path / "absent.dat"},
    ]
    for changed in calls:
        assert run(**changed) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        run(fr_mean="0.5,0.5")


def test_dlib_labels_without_any_file(run: Run, table: Path, tmp_path: Path, astronaut_crop: np.ndarray) -> None:
    """Pictures of two people have higher anchors than one that hardly shows its person any more."""
    save_faces(tmp_path / "faces", astronaut_crop, {"astronaut": 3})
    save_faces(tmp_path / "faces", read_image(SAMPLES / "hopper_dark.png"), {"grace hopper": 3})
    ruined = cv2.resize(cv2.resize(astronaut_crop, (7, 7)), (112, 112))
    Image.fromarray(ruined).save(tmp_path / "faces/astronaut/ruined.png")
    assert run(fr="dlib") == 0
    hers = [label for label in read_labels(table) if label.identity == "astronaut"]
    qualities = {Path(label.path).stem: quality_of(label) for label in hers}
    assert qualities.pop("ruined") < min(qualities.values())


def test_real_faces(run: Run, table: Path, tmp_path: Path, shared: Path) -> None:
    """A hundred faces of LFW's training identities: plausible labels, and most faces are found."""
    pytest.importorskip("onnxruntime")
    people = (shared / "data/splits/lfw_train_identities.txt").read_text().split()
    several = [name for name in people if len(list((shared / "data/faces/lfw" / name).iterdir())) in (4, 5, 6)][:22]
    for name in several:
        shutil.copytree(shared / "data/faces/lfw" / name, tmp_path / "faces" / name)
    assert run(fr=shared / "data/fr/mobilefacenet_foamliu.onnx", workers=2, batch_size=32) == 0
    labels = read_labels(table)
    assert len(labels) > 90
    assert np.mean([label.status == "ok" for label in labels]) > 0.95
    assert np.mean([label.pose > AXES["pose"].index("profile") for label in labels]) > 0.8
    qualities = [quality_of(label) for label in labels]
    assert 1 < np.median(qualities) < 10


def quality_of(label: Label) -> float:
    assert label.quality is not None
    return label.quality
