"""Record files, written here from the format's description, read without MXNet."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from cr_fiqa_parts import MAGIC, SIZE, encoded, picture, write_records

from faces.reader import ImageError, read_image
from methods.cr_fiqa.data import read_identities
from methods.cr_fiqa.recordio import RecordError, RecordReader, read_samples
from model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3)


def content(number, labels, image=b""):
    """IfQQ, labels, image; one label stands in the header itself."""
    if np.isscalar(labels):
        return struct.pack("<IfQQ", 0, labels, number, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, number, 0, *labels) + image


@pytest.fixture
def contents():
    """Classes 7, 3, 7, 3, then what InsightFace keeps of each identity, which is no sample."""
    labels = [7.0, [3.0, 99.0], [7.0], 3.0]
    samples = [content(i, label, encoded(picture(i, 0))) for i, label in enumerate(labels, 1)]
    return [content(0, [5.0, 7.0]), *samples, content(5, [1.0, 3.0]), content(6, [3.0, 5.0])]


@pytest.mark.parametrize("index", [True, False])
def test_samples_and_their_labels(tmp_path, contents, index):
    path = write_records(tmp_path / "set", contents, index) / "train.rec"
    samples, read = read_samples(path), RecordReader(str(path))
    assert samples.labels.tolist() == [7, 3, 7, 3]
    for number, sample in enumerate(samples, 1):
        expected = read_image(encoded(picture(number, 0)))
        assert np.array_equal(read(sample), expected)


def test_index_in_another_order(tmp_path, contents):
    path = write_records(tmp_path / "set", contents) / "train.rec"
    index = path.with_suffix(".idx")
    index.write_text("".join(reversed(index.read_text().splitlines(keepends=True))))
    assert read_samples(path).labels.tolist() == [7, 3, 7, 3]


def test_content_that_holds_the_magic_number(tmp_path, contents):
    image = encoded(picture(0, 0))
    aligned = image + bytes(-len(image) % 4) + MAGIC + b"tail" + MAGIC
    contents[2] = content(2, 3.0, aligned)
    for index in (True, False):
        path = write_records(tmp_path / str(index), contents, index) / "train.rec"
        samples = read_samples(path)
        assert samples.labels.tolist() == [7, 3, 7, 3]
        assert np.array_equal(RecordReader(str(path))(samples[1]), read_image(aligned))


def test_without_a_header_record_all_are_samples(tmp_path):
    contents = [content(i, float(i % 2), encoded(picture(i, 0))) for i in range(4)]
    assert read_samples(write_records(tmp_path / "set", contents) / "train.rec").labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("label", [float("nan"), float("inf"), 0.5])
def test_labels_that_are_no_whole_numbers(tmp_path, contents, place, label):
    contents[place] = content(place, [label, 7.0])
    path = write_records(tmp_path / "set", contents) / "train.rec"
    with pytest.raises(RecordError, match=r"train\.rec: a label is"):
        read_samples(path)


def test_damage_is_named(tmp_path, contents):
    path = write_records(tmp_path / "set", contents) / "train.rec"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cut off"):
        read_samples(path)
    path.write_bytes(b"\0\0\0\0" + whole[4:])
    with pytest.raises(RecordError, match="no record begins at byte 0"):
        read_samples(path)
    path.with_suffix(".idx").write_text("zero\tnothing\n")
    with pytest.raises(RecordError, match="expected lines `number<TAB>byte`"):
        read_samples(path)
    path.write_bytes(b"")
    with pytest.raises(RecordError):
        read_samples(path)


def test_classes_are_in_the_order_of_their_numbers(tmp_path, contents):
    contents[1] = content(1, 10.0, encoded(picture(1, 0)))
    identities, skipped = read_identities([str(write_records(tmp_path / "set", contents))], PREPROCESSING)
    assert skipped == []
    assert identities.classes == ["3", "7", "10"]
    assert identities.labels.tolist() == [2, 0, 1, 0]
    assert torch.equal(identities.images.cached[2], torch.from_numpy(read_image(encoded(picture(3, 0))).copy()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_left_out_or_replaced(tmp_path, contents, workers):
    contents[3] = content(3, [7.0], encoded(picture(3, 0))[:700])
    folder = str(write_records(tmp_path / "set", contents))
    with pytest.raises(ImageError):
        RecordReader(f"{folder}/train.rec")(read_samples(f"{folder}/train.rec")[2])
    kept, skipped = read_identities([folder], PREPROCESSING, cache="yes", workers=workers)
    assert [status for _, status in skipped] == ["truncated"]
    assert kept.images.usable.tolist() == [0, 1, 3]
    streamed, _ = read_identities([folder], PREPROCESSING, cache="no", workers=workers)
    (batch,) = streamed.images.batches(4, seed=(0,))
    assert streamed.images.replaced == 1
    assert 2 not in batch.rows
    for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
        assert torch.equal(image, kept.images.cached[row])
