"""Resizing and normalising, against torchvision."""

from __future__ import annotations

import json

import numpy as np
import pytest
import recipe
import torch
from PIL import Image

from model.preprocessing import CLIP_PREPROCESSING, FACE_PREPROCESSING, Preprocessing


@pytest.mark.parametrize("preprocessing", [CLIP_PREPROCESSING, FACE_PREPROCESSING])
@pytest.mark.parametrize("shape", [(112, 112), (37, 251), (224, 224), (640, 480)])
def test_same_as_torchvision(preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    from torchvision import transforms

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    size = (preprocessing.size, preprocessing.size)
    published = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    ours = preprocessing.normalise(torch.from_numpy(preprocessing.resize(image))[None])
    torch.testing.assert_close(ours[0], published(Image.fromarray(image)), atol=2e-6, rtol=0)


def test_batches_are_channels_last() -> None:
    batch = torch.from_numpy(np.stack([recipe.mirror_image(seed) for seed in (1, 2)]))
    before = batch.clone()
    images = FACE_PREPROCESSING.normalise(batch)
    assert images.shape == (2, 3, 112, 112)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, before)


def test_wrong_size_is_refused() -> None:
    with pytest.raises(AssertionError, match="expected"):
        CLIP_PREPROCESSING.normalise(torch.zeros(1, 112, 112, 3, dtype=torch.uint8))


def test_metadata_round_trip() -> None:
    custom = Preprocessing(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_metadata({"preprocessing": custom.to_json()}, FACE_PREPROCESSING) == custom
    assert Preprocessing.from_metadata({}, FACE_PREPROCESSING) == FACE_PREPROCESSING


def as_json(**wrong: object) -> str:
    return json.dumps({"size": 112, "mean": [0.5] * 3, "std": [0.5] * 3, **wrong})


@pytest.mark.parametrize(
    "text",
    [
        "[]", "3", "{", "[" * 100_000,
        *(as_json(size=size) for size in (0, -1, 1_000_000, 1.5, "112", None)),
        *(as_json(mean=mean) for mean in ([0.5], [float("nan")] * 3, "abc", None)),
        *(as_json(std=std) for std in ([0.5, 0, 0.5], [float("inf")] * 3)),
    ],
    ids=range(16),
)
def test_metadata_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ValueError, match=r"preprocessing in the metadata is .* were expected"):
        Preprocessing.from_metadata({"preprocessing": text}, FACE_PREPROCESSING)
