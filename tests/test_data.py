"""From a label table to batches."""

from __future__ import annotations

import math

import pytest
import recipe
import torch
from PIL import Image
from training_parts import write_faces

from faces.reader import ImageError, read_image
from labels.label_table import Label, write_labels
from methods.clib_fiqa.data import normalise_quality, read_faces
from model.preprocessing import CLIP_PREPROCESSING, FACE_PREPROCESSING
from training.batches import network_input
from training.means import StepValues


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), 11)


def test_each_row_once_in_equal_batches(table):
    faces, skipped = read_faces(table, FACE_PREPROCESSING)
    assert skipped == []
    batches = list(faces.images.batches(4, seed=(1, 2)))
    assert sorted(len(batch.rows) for batch in batches) == [3, 4, 4]
    assert len(batches) == faces.images.steps(4)
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(11))
    for batch in batches:
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            expected = FACE_PREPROCESSING.resize(read_image(faces.images.paths[row]))
            assert torch.equal(image, torch.from_numpy(expected.copy()))


def test_no_step_of_a_single_image(table):
    faces, _ = read_faces(table, FACE_PREPROCESSING)
    assert [len(batch.rows) for batch in faces.images.batches(2, seed=(0,))] == [3, 2, 2, 2, 2]


def test_order_and_flips_follow_from_the_seed(table):
    faces, _ = read_faces(table, FACE_PREPROCESSING)
    runs = [list(faces.images.batches(4, seed=seed)) for seed in ((1, 0), (1, 0), (1, 1))]
    rows, flips = ([torch.cat([getattr(batch, name) for batch in run]) for run in runs] for name in ("rows", "flip"))
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(flips[0], flips[1])
    assert not torch.equal(rows[0], rows[2])
    many = torch.cat([batch.flip for epoch in range(100) for batch in faces.images.batches(4, seed=(0, epoch))])
    assert 0.45 < many.float().mean() < 0.55
    assert not any(batch.flip.any() for batch in faces.images.batches(4, seed=(0, 0), flips=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing(table, workers):
    kept, _ = read_faces(table, FACE_PREPROCESSING, cache="yes")
    read, _ = read_faces(table, FACE_PREPROCESSING, cache="no", workers=workers)
    assert read.images.cached is None
    for a, b in zip(kept.images.batches(4, seed=(3,)), read.images.batches(4, seed=(3,)), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_factors_are_in_the_order_of_the_losses(tmp_path):
    write_faces(tmp_path, 2)
    row = {"blur": 2, "pose": 1, "expression": 1, "illumination": 0, "occlusion": 1}
    write_labels(tmp_path / "labels.tsv", [Label("0.png", 0.1, **row), Label("1.png", 0.2, **row)])
    faces, _ = read_faces(tmp_path / "labels.tsv", FACE_PREPROCESSING)
    assert faces.factors[0].tolist() == [2, 1, 0, 1, 1]  # blur, occlusion, illumination, pose, expression


@pytest.mark.parametrize("cache", ["yes", "no"])
def test_rows_that_cannot_train_are_left_out(tmp_path, cache):
    """Rows keep their index, so that what belongs to an image stays with it."""
    write_faces(tmp_path, 4)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:900])
    names = ["0.png", "gone.png", "1.png", "cut.png", "2.png", "3.png"]
    qualities = [1.0, 9.0, None, 0.5, 2.0, 3.0]
    rows = [Label(name, quality, 0, 0, 0, 0, 0) for name, quality in zip(names, qualities, strict=True)]
    write_labels(tmp_path / "labels.tsv", rows)
    faces, skipped = read_faces(tmp_path / "labels.tsv", FACE_PREPROCESSING, cache=cache)
    assert sorted(skipped) == [("1.png", "no_quality"), ("cut.png", "truncated"), ("gone.png", "missing")]
    assert faces.images.usable.tolist() == [0, 4, 5]
    assert faces.quality[[0, 4, 5]].tolist() == [0, 0.5, 1]  # the extremes are those of the rows that train
    assert faces.quality[1:4].isnan().all()


def test_too_few_rows(tmp_path):
    write_faces(tmp_path, 1)
    write_labels(tmp_path / "labels.tsv", [Label("0.png", 1, 0, 0, 0, 0, 0), Label("gone.png", 1, 0, 0, 0, 0, 0)])
    with pytest.raises(ValueError, match=r"1 rows .* out of 2 \(missing\)"):
        read_faces(tmp_path / "labels.tsv", FACE_PREPROCESSING)
    with pytest.raises(ValueError, match="generate_labels"):
        read_faces(tmp_path / "absent.tsv", FACE_PREPROCESSING)


def test_an_image_that_goes_during_the_run_is_named(tmp_path):
    faces, _ = read_faces(write_faces(tmp_path, 4), FACE_PREPROCESSING, cache="no")
    (tmp_path / "2.png").unlink()
    with pytest.raises(ImageError, match=r"2\.png could be read when the run began"):
        list(faces.images.batches(4, seed=(0,)))


def test_normalisation():
    raw = torch.tensor([2.0, math.nan, 4.0, 3.0], dtype=torch.float64)
    found = normalise_quality(raw)
    assert found[[0, 2, 3]].tolist() == [0, 1, 0.5]
    assert found[1].isnan()
    assert normalise_quality(torch.tensor([7.0, 7.0])).tolist() == [0.5, 0.5]  # the published code divides by zero


def test_one_outlier_crushes_minmax_but_not_percentiles():
    raw = torch.cat([torch.linspace(0, 1, 1000, dtype=torch.float64), torch.tensor([1e10])])
    assert normalise_quality(raw)[:1000].max() < 1e-9
    robust = normalise_quality(raw, "percentile")
    assert robust[500].item() == pytest.approx(0.5, abs=0.01)
    assert robust.min() == 0
    assert robust.max() == 1


def test_given_qualities_must_be_in_range():
    assert normalise_quality(torch.tensor([0.2, math.nan]), "none")[0] == torch.tensor(0.2)
    with pytest.raises(ValueError, match="--normalise none"):
        normalise_quality(torch.tensor([0.2, 1.2]), "none")


def test_full_batches_drop_what_is_left_over(table):
    faces, _ = read_faces(table, FACE_PREPROCESSING)
    assert faces.images.steps(4, "full") == 2
    epochs = [list(faces.images.batches(4, seed=(0, epoch), sizes="full")) for epoch in range(20)]
    assert {len(batch.rows) for batches in epochs for batch in batches} == {4}
    assert all(len(torch.cat([batch.rows for batch in batches]).unique()) == 8 for batches in epochs)
    seen = torch.cat([batch.rows for batches in epochs for batch in batches]).unique()
    assert len(seen) == 11  # every image has its turn
    assert faces.images.describe(4, "full") == "2 steps an epoch; each leaves out 3 images, chosen at random"
    assert faces.images.describe(4, "even") == "3 steps an epoch"
    with pytest.raises(ValueError, match="--batches full: 11 images and 1 processes cannot fill a batch of 12"):
        faces.images.steps(12, "full")


@pytest.mark.parametrize("cache", ["yes", "no"])
def test_crops_are_enlarged_on_the_device(tmp_path, cache):
    """To what the CPU gives, which rounds to whole grey levels twice, along rows and along columns."""
    for index in range(3):
        picture = Image.fromarray(recipe.mirror_image(index, 112))
        picture.save(tmp_path / f"{index}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    names = ["0.png", "small.png", "1.png", "2.png"]
    write_labels(tmp_path / "labels.tsv", [Label(name, index, 0, 0, 0, 0, 0) for index, name in enumerate(names)])
    table = tmp_path / "labels.tsv"
    crops, skipped = read_faces(table, CLIP_PREPROCESSING, cache=cache, cache_size="crop")
    assert skipped == [("small.png", "not_112x112")]
    whole, _ = read_faces(table, CLIP_PREPROCESSING, cache=cache)
    rows = crops.images.usable
    assert rows.tolist() == [0, 2, 3]
    (_, small), *_ = crops.images.in_order(4)
    (_, large), *_ = whole.images.in_order(4)
    assert small.shape == (3, 112, 112, 3)
    found = network_input(small, CLIP_PREPROCESSING)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = CLIP_PREPROCESSING.normalise(large[[0, 2, 3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / min(CLIP_PREPROCESSING.std))


def test_the_host_receives_each_step_once():
    values = StepValues(torch.device("cpu"))
    values.every = 3
    for index in range(1, 6):
        values.add(torch.tensor([float(index), 1.0]), weight=index)
        if values.due:
            assert values.read() == [(1, [1.0, 1.0]), (2, [2.0, 1.0]), (3, [3.0, 1.0])]
    assert values.read() == [(4, [4.0, 1.0]), (5, [5.0, 1.0])]
    assert values.read() == []
    assert values.means().tolist() == pytest.approx([(1 + 4 + 9 + 16 + 25) / 15, 1.0])
