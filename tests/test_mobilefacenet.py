"""The factor network against numbers computed with the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_tensors import golden_shapes, recipe_tensors, shapes_of

from model.checkpoint import CheckpointError
from model.mobilefacenet import HEADS, FactorNetwork, TrunkShape

SMALL = TrunkShape(
    widths=(16, 24, 32), blocks=(1, 2, 1), down_hidden=(20, 40, 60), hidden=(28, 44, 52), stem=12, last=80
)


@torch.no_grad()
def test_published_forward(golden: Path) -> None:
    values = np.load(golden / "mfn_forward.npz")
    network = FactorNetwork.from_tensors(recipe_tensors(golden / "mfn_keys.json"))
    assert list(shapes_of(network).items()) == list(golden_shapes(golden / "mfn_keys.json").items())
    images = network.preprocessing.normalise(torch.from_numpy(values["images"]))
    probabilities = network.probabilities(images)
    assert list(probabilities) == list(HEADS)
    for number, distribution in enumerate(probabilities.values(), start=1):
        np.testing.assert_allclose(distribution, values[f"head{number}"], atol=1e-5)
    for name, logits in network(images).items():
        torch.testing.assert_close(logits.softmax(-1), probabilities[name])


@torch.no_grad()
def test_any_width_loads() -> None:
    torch.manual_seed(0)
    small = FactorNetwork(SMALL, head_width=48).eval()
    loaded = FactorNetwork.from_tensors(small.state_dict())
    faces = torch.randn(2, 3, 112, 112)
    for name, logits in small(faces).items():
        assert logits.shape == (2, HEADS[name])
        assert torch.equal(loaded(faces)[name], logits)


def test_default_is_the_published_size(golden: Path) -> None:
    assert shapes_of(FactorNetwork()) == golden_shapes(golden / "mfn_keys.json")


def test_missing_head_is_named(golden: Path) -> None:
    tensors = recipe_tensors(golden / "mfn_keys.json")
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("classifier5")}
    with pytest.raises(CheckpointError, match=r"16 missing \(classifier5\.0\.bias"):
        FactorNetwork.from_tensors(tensors)
