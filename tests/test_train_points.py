"""The training of the network of points: its windows, its loss, and that it can be repeated."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faces.template import ARCFACE_POINTS, mapped, mapped_back, similarity_transform
from model.face_points import CENTRE, SIZE, FacePoints
from recipes.raw_photographs import train_points
from recipes.raw_photographs.train_points import (
    Source,
    batch_of,
    batches,
    displaced,
    fitted,
    folds_of,
    loss_of,
    main,
    rate_at,
    report,
    sources,
    train,
    window_of,
)

SAMPLES = Path(__file__).parents[1] / "samples"
MOVED = ARCFACE_POINTS + np.array([60.0, 40.0])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A grey picture of 300x200 pixels with a red dot at each of the template's points, moved by (60, 40)."""
    pixels = np.full((200, 300, 3), 90, np.uint8)
    for x, y in MOVED:
        pixels[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2] = (255, 0, 0)
    path = tmp_path / "dots.png"
    Image.fromarray(pixels).save(path)
    return path


def is_red(window: np.ndarray, points: np.ndarray) -> list[bool]:
    """Whether the window is red at points of the template."""
    pixels = np.rint((points - CENTRE) * 1.6 + (SIZE - 1) / 2).astype(int)
    return [bool(window[y, x, 0] > window[y, x, 1] + 40) for x, y in pixels]


def test_the_points_of_a_window_lie_where_the_picture_has_them(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_points, "harmed", lambda pixels, rng: pixels)
    for kind in ("original", "crop"):
        source = Source(kind, 0, picture, MOVED, 0.5)
        windows = [window_of(source, np.random.default_rng(seed)) for seed in range(20)]
        assert sum(sum(is_red(one.pixels, one.points)) for one in windows if one.is_face == 1) > 60
        for one in windows:
            assert one.placed
            assert one.each == 0.5
            if one.is_face == 1:
                assert all(is_red(one.pixels, one.points)), one.points
                assert one.points[0, 0] < one.points[1, 0], "a mirrored face has its points from left to right too"


def test_other_windows_hold_no_points(picture: Path) -> None:
    points = MOVED
    for source in (Source("beside", 0, picture, points), Source("sideways", 0, picture, points), Source("pattern", -1)):
        one = window_of(source, np.random.default_rng(0))
        assert not one.placed
        assert one.each == 0
        assert one.is_face == 0
    reduced = window_of(Source("reduced", 0, picture, points), np.random.default_rng(0))
    assert not reduced.placed
    assert reduced.is_face == 0


def test_a_displacement_is_what_the_alignment_does() -> None:
    rng = np.random.default_rng(0)
    true = ARCFACE_POINTS + rng.normal(0, 4, (3, 5, 2))
    found = true + rng.normal(0, 2, (3, 5, 2))
    expected = []
    for a, b in zip(found, true, strict=True):
        in_place = mapped_back(ARCFACE_POINTS, similarity_transform(b, ARCFACE_POINTS))
        expected.append(mapped(in_place, similarity_transform(a, ARCFACE_POINTS)) - ARCFACE_POINTS)
    np.testing.assert_allclose(displaced(torch.tensor(found), torch.tensor(true)), expected, atol=1e-5)
    template = torch.view_as_complex(torch.tensor(ARCFACE_POINTS))
    a, b = fitted(torch.tensor(true), template)
    matrix = similarity_transform(true[0], ARCFACE_POINTS)
    assert complex(a[0]) == pytest.approx(complex(matrix[0, 0], matrix[1, 0]))
    assert complex(b[0]) == pytest.approx(complex(*matrix[:, 2]))


def test_of_a_crop_the_alignment_alone_is_learned() -> None:
    """Points whose similarity is right cost nothing when only that is known; each flag takes its part away."""
    points = torch.tensor(ARCFACE_POINTS[None], dtype=torch.float32)
    spread = torch.view_as_complex(points - points.mean(dim=1, keepdim=True))
    noise = torch.view_as_complex(torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0)))
    noise = noise - noise.mean()
    noise = noise - spread * (spread.conj() * noise).sum() / (spread.abs() ** 2).sum()
    size = (spread.abs() ** 2).sum() / ((spread + noise).abs() ** 2).sum()  # so that the fit neither turns nor scales
    found = torch.view_as_real((spread + noise) * size) + points.mean(dim=1, keepdim=True)
    one, nothing, logits = torch.ones(1), torch.zeros(1), torch.full((1,), 40.0)
    assert loss_of(found, logits, points, one, nothing, one).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(found, logits, points, one, one, one).item() > 0.1
    assert loss_of(found, logits, points, nothing, nothing, nothing).item() == pytest.approx(40)
    assert loss_of(found + 9, logits, points, nothing, nothing, torch.full((1,), torch.nan)).item() == 0


def crops() -> list[Source]:
    names = ("astronaut", "astronaut_blurred", "astronaut_occluded", "hopper_dark")
    return [Source("crop", -1, SAMPLES / f"{name}.png") for name in names]


def test_windows_do_not_depend_on_the_number_of_processes() -> None:
    alone, three = (list(batches(crops() * 16, 4, 7, workers)) for workers in (1, 3))
    assert len(alone) == 4
    for a, b in zip(alone, three, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))  # NaN: neither a face nor none
    (pixels, points, *flags), other = batch_of(crops(), [0]), batch_of(crops(), [1])
    assert pixels.shape == (4, SIZE, SIZE, 3)
    assert points.shape == (4, 5, 2)
    assert [flag.shape for flag in flags] == [(4,)] * 3
    assert (pixels != other[0]).any()


def test_the_same_training_gives_the_same_network() -> None:
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        network = FacePoints()
        train(network, crops() * 8, 2, 3, 2)
        trained.append(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, trained), strict=True))
    assert not network.training
    torch.manual_seed(0)
    start = FacePoints().state_dict()
    frozen = {f"trunk.blocks.{i}." for i in range(train_points.FROZEN)}
    for key, value in network.state_dict().items():
        is_frozen = key.startswith(("trunk.stem", "trunk.prelu", *frozen))
        assert torch.equal(value, start[key]) == is_frozen, key


def test_a_training_that_diverges_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_points, "loss_of", lambda found, *_: found.sum() * torch.nan)
    with pytest.raises(RuntimeError, match=r"the training has diverged: loss nan, .*; try a lower LEARNING_RATE"):
        train(FacePoints(), crops() * 8, 2, 3, 1)


def test_windows_that_are_neither_a_face_nor_none_are_not_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A face, none, and twice neither, of a network that takes all for faces."""
    points = np.stack([ARCFACE_POINTS] * 4).astype(np.float32)
    is_face = np.array([1, 0, np.nan, np.nan], np.float32)
    monkeypatch.setattr(train_points, "batch_of", lambda *_: (points, points, is_face, is_face, is_face))
    report(lambda pixels: (pixels + 3, torch.ones(4)), crops())
    printed = capsys.readouterr().out
    assert f"mean error of a point {18 ** 0.5:.3f} pixels" in printed
    assert "faces: 1 of 2 wrong" in printed


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step / 100) for step in range(101)]
    assert rates[0] == 0
    assert max(rates) > 0.99
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of two people with originals, one of them of LFW, and of one without."""
    data = tmp_path / "data"
    header = "path\twidth\theight\tfaces\tscore\tbox_x1\tbox_y1\tbox_x2\tbox_y2"
    lines = [header + "".join(f"\t{axis}{i}" for i in range(1, 6) for axis in "xy")]
    for path in ("celeba/100/1.jpg", "celeba/101/2.jpg", "lfw/Ann_A/Ann_A_0001.jpg"):
        points = "\t".join(map(str, (ARCFACE_POINTS + 20).ravel()))
        lines.append(f"{path}\t200\t200\t1\t0.9\t0\t0\t1\t1\t{points}")
    for path in ("faces/celeba/100/1.jpg", "faces/celeba/101/2.jpg", "faces/celeba/7218/3.jpg",
                 "faces/lfw/Ann_A/Ann_A_0001.jpg", "faces/lfw/Bob_B/Bob_B_0001.jpg", "faces/cfp/001/f01.jpg"):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(b"")
    for folder in ("raw", "splits"):
        (data / folder).mkdir()
    (data / "raw" / "points.tsv").write_text("\n".join(lines) + "\n")
    (data / "splits" / "lfw_train_identities.txt").write_text("Ann_A\nBob_B\n")
    (data / "faces" / "cfp_identities.tsv").write_text("cfp\tlfw\n001\tAnn_A\n")
    return data


def test_no_fold_holds_anything_of_the_people_of_the_other(data: Path) -> None:
    folds = folds_of(data)
    assert folds == {"100": 0, "101": 1, "7218": 0, "Ann_A": 0}
    found = sources(data)
    assert {one.fold for one in found if one.path and "Ann_A" in str(one.path)} == {0}
    assert {one.fold for one in found if one.path and "cfp" in str(one.path)} == {0}, "001 is Ann_A"
    assert {one.fold for one in found if one.path and "Bob_B" in str(one.path)} == {-1}
    assert not [one for one in found if one.path and "7218" in str(one.path)], "an LFW test identity"
    kinds = [one.kind for one in found if one.path and "101" in str(one.path) and "raw" in str(one.path)]
    assert {*kinds} >= {"original", "beside", "reduced"}
    assert list(islice((one.kind for one in reversed(found)), 3)) == ["pattern"] * 3


def test_a_wrong_call_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mesh", str(tmp_path / "none.tflite"), "--data", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_each_half_needs_originals(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained: the mesh is not even read."""
    table = data / "raw" / "points.tsv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "celeba/101" not in line))
    assert main(["--mesh", str(data / "none.tflite"), "--data", str(data)]) == 2
    assert f"error: each half of the people needs originals, but {table} has none of half 1" in capsys.readouterr().err
