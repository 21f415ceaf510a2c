"""The small network that passes aligned crops, and its training: its pictures, its people, and that it repeats."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faces import detect
from faces.detect import halved, is_plain, shows_aligned_face
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, SIZE, mapped, off_template
from model.checkpoint import CheckpointError, read_checkpoint
from model.crop_check import CropCheck
from recipes.raw_photographs import train_crop_check
from recipes.raw_photographs.train_crop_check import (
    MEASURED,
    NO_CROPS,
    Picture,
    Pictures,
    aligned,
    example,
    main,
    misplaced,
    read_pictures,
    rectangle,
    reduced,
    rolled,
    turned,
)
from recipes.raw_photographs.train_points import MISPLACED, PLACED, folds_of

SAMPLES = Path(__file__).parents[1] / "samples"
FACE = read_image(SAMPLES / "astronaut.png")


@pytest.fixture
def pictures() -> Pictures:
    whole = np.full((300, 260, 3), 128, np.uint8)
    whole[90:202, 60:172] = FACE
    return Pictures([Picture(FACE, ARCFACE_POINTS)], [Picture(whole, ARCFACE_POINTS + np.array([60, 90]))])


def test_the_network_takes_light_and_contrast_out() -> None:
    torch.manual_seed(0)
    network, grey = CropCheck().eval(), torch.from_numpy(halved(FACE))[None]
    with torch.inference_mode():
        (logit,) = network(grey)
        assert float(network(0.5 * grey.float() + 60)) == pytest.approx(float(logit), abs=0.02)
        flat = network(torch.full((2, 56, 56), 9, dtype=torch.uint8))
        assert flat.shape == (2,)
        assert flat.isfinite().all()
        again = CropCheck.from_tensors(network.state_dict())
        assert torch.equal(again(grey), network(grey))
    with pytest.raises(CheckpointError, match="misshapen"):
        CropCheck.from_tensors({**network.state_dict(), "linear.bias": torch.zeros(3)})


def test_a_second_look_is_rarely_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "points_are_placed", lambda crop: pytest.fail("the network of points was asked"))
    assert is_plain(FACE)
    assert shows_aligned_face(FACE)
    monkeypatch.setattr(detect, "points_are_placed", lambda crop: True)
    upside_down = np.ascontiguousarray(FACE[::-1])
    assert not is_plain(upside_down)
    assert shows_aligned_face(upside_down), "who doubts is overruled"


def test_faces_lie_where_a_picture_says(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices of 60 pictures of each kind, by where they bring the face's points."""
    places: list[float] = []

    def keep(rgb: np.ndarray, matrix: np.ndarray, size: int, border: int) -> np.ndarray:
        assert size == SIZE
        assert border in (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)
        points = next(one.points for one in (*pictures.crops, *pictures.originals) if one.pixels is rgb)
        places.append(off_template(mapped(points, matrix)))
        return FACE

    monkeypatch.setattr(train_crop_check, "warped", keep)
    rng = np.random.default_rng(0)
    for make, is_right in (
        (aligned, lambda off: off < PLACED),
        (misplaced, lambda off: off > MISPLACED),
        (turned, lambda off: off > MISPLACED),
    ):
        places.clear()
        for _ in range(60):
            assert make(pictures, rng).shape == (SIZE, SIZE, 3)
        assert len(places) == 60
        assert all(map(is_right, places)), make.__name__


def test_parts_of_photographs_lie_in_them(pictures: Pictures) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        low, high = rectangle(np.array([60, 45]), rng)
        assert (low >= 0).all()
        assert (high <= (60, 45)).all()
        assert (high - low >= 39.9).all()
        assert reduced(pictures, rng).shape == (SIZE, SIZE, 3)
        assert (rolled(pictures, rng) != FACE).any()


def test_every_kind_of_picture_is_drawn_and_is_grey_and_halved(pictures: Pictures) -> None:
    assert sum(share for _, share in NO_CROPS) == pytest.approx(1)
    for is_aligned in (True, False):
        for seed in range(40):
            first, again = (example(pictures, is_aligned, np.random.default_rng(seed)) for _ in range(2))
            assert (first.shape, first.dtype) == ((SIZE // 2, SIZE // 2), np.uint8)
            assert np.array_equal(first, again)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of two CelebA people, the one who is a test identity, two of LFW, and two of CFP."""
    data = tmp_path / "data"
    header = "path\twidth\theight\tfaces\tscore\tbox_x1\tbox_y1\tbox_x2\tbox_y2"
    lines = [header + "".join(f"\t{axis}{i}" for i in range(1, 6) for axis in "xy")]
    points = "\t".join(map(str, (ARCFACE_POINTS + 20).ravel()))
    named = ("celeba/100/1.jpg", "celeba/101/1.jpg", "celeba/7218/1.jpg", "lfw/Ann_A/1.jpg", "lfw/Eve_E/1.jpg")
    lines += [f"{path}\t200\t200\t1\t0.9\t0\t0\t1\t1\t{points}" for path in named]
    crops = (*named, "lfw/Bob_B/1.jpg", "lfw/Tom_T/1.jpg", "cfp/001/f01.jpg", "cfp/002/p01.jpg")
    for path in (*(f"faces/{path}" for path in crops), *(f"raw/{path}" for path in named)):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        whole = np.full((200, 200, 3), sum(map(ord, path)) % 256, np.uint8)
        Image.fromarray(whole if path.startswith("raw") else FACE).save(data / path)
    (data / "splits").mkdir()
    (data / "raw" / "points.tsv").write_text("\n".join(lines) + "\n")
    (data / "splits" / "lfw_train_identities.txt").write_text("Ann_A\nBob_B\nEve_E\n")
    (data / "faces" / "cfp_identities.tsv").write_text("cfp\tlfw\n001\tAnn_A\n002\tEve_E\n")
    return data


def test_nobody_who_measures_trains(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = folds_of(data)
    assert {name for name, fold in folds.items() if fold == MEASURED} == {"101", "Eve_E"}
    read: list[str] = []

    def remembered(path: Path) -> np.ndarray:
        read.append(path.relative_to(data).as_posix())
        return FACE

    monkeypatch.setattr(train_crop_check, "read_image", remembered)
    read_pictures(data)
    people = ("100", "Ann_A", "Bob_B", "001")
    assert {path.split("/")[2] for path in read} == set(people), "neither 7218 and Tom_T, who test, nor the measured"


def test_the_same_command_gives_the_same_file(data: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        assert main(["--data", str(data), "--output", str(file), "--steps", "3"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    tensors, metadata = read_checkpoint(files[0])
    assert metadata["system"] == "crop-check"
    network = CropCheck.from_tensors(tensors)
    assert not network.training


def test_wrong_calls_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_training_that_diverges_ends_in_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CropCheck, "forward", lambda self, grey: self.linear.bias * torch.nan + grey.sum(dim=(1, 2)))
    assert main(["--data", str(data), "--output", str(tmp_path / "a.safetensors"), "--steps", "2"]) == 1
    assert "the training has diverged: loss nan; try a lower LEARNING_RATE" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
