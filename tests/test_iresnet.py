"""IResNet and the ArcFace header against numbers computed with the published code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_tensors import golden_shapes, recipe_tensors, relative_error, shapes_of
from torch import Tensor

from model.checkpoint import CheckpointError
from model.iresnet import ArcFaceHeader, IResNet, PReLU


@pytest.mark.parametrize("depth", [50, 100])
@torch.no_grad()
def test_published_forward(golden: Path, depth: int) -> None:
    values = np.load(golden / f"iresnet{depth}_forward.npz")
    keys = golden / f"iresnet{depth}_qs_keys.json"
    network = IResNet.from_tensors(recipe_tensors(keys))
    assert list(shapes_of(network).items()) == list(golden_shapes(keys).items())
    embedding, quality = network(network.preprocessing.normalise(torch.from_numpy(values["images"])))
    assert relative_error(embedding, values["features"]) < 1e-4
    assert quality is not None
    assert relative_error(quality, values["quality"]) < 1e-4


@torch.no_grad()
def test_without_a_quality_head(golden: Path) -> None:
    keys = golden / "baselines" / "iresnet18_keys.json"
    network = IResNet.from_tensors(recipe_tensors(keys))
    assert shapes_of(network) == golden_shapes(keys)
    embedding, quality = network(torch.zeros(2, 3, 112, 112))
    assert embedding.shape == (2, 512)
    assert quality is None


@torch.no_grad()
def test_any_width_loads() -> None:
    torch.manual_seed(0)
    small = IResNet((1, 2, 1, 1), (8, 12, 16, 24), embedding=32, image_size=64).eval()
    loaded = IResNet.from_tensors(small.state_dict())
    assert loaded.preprocessing.size == 64
    faces = torch.randn(2, 3, 64, 64)
    for found, expected in zip(loaded(faces), small(faces), strict=True):
        assert torch.equal(found, expected)


def test_backbone_given_for_a_header_is_named(golden: Path) -> None:
    with pytest.raises(CheckpointError, match="kernel"):
        ArcFaceHeader.from_tensors(recipe_tensors(golden / "baselines" / "iresnet18_keys.json"))


@pytest.fixture(scope="module")
def published(golden: Path) -> Mapping[str, Tensor]:
    with np.load(golden / "losses.npz") as values:
        return {name: torch.from_numpy(values[name]) for name in values.files if name.startswith("cr_")}


@pytest.fixture(scope="module")
def header(published: Mapping[str, Tensor]) -> ArcFaceHeader:
    return ArcFaceHeader.from_tensors({"kernel": published["cr_kernel"]})


def test_published_header(header: ArcFaceHeader, published: Mapping[str, Tensor]) -> None:
    embeddings, labels = published["cr_embeddings"], published["cr_labels"]
    ccs, nnccs = header.similarities(embeddings, labels)
    torch.testing.assert_close(ccs, published["cr_ccs"])
    torch.testing.assert_close(nnccs, published["cr_nnccs"])
    logits = header.logits(embeddings, labels, s=64, m=0.5)
    torch.testing.assert_close(logits, published["cr_logits"], atol=1e-4, rtol=1e-5)


def test_negative_neighbours_stay_negative(header: ArcFaceHeader) -> None:
    centres = torch.eye(3) * 2 - 1 + torch.eye(3)
    header = ArcFaceHeader.from_tensors({"kernel": centres})
    ccs, nnccs = header.similarities(centres.T, torch.arange(3))
    assert (nnccs < 0).all()
    torch.testing.assert_close(ccs, torch.ones(3, 1))


def test_gradient_is_finite_on_a_centre() -> None:
    header = ArcFaceHeader.from_tensors({"kernel": torch.eye(4)})
    embeddings = torch.eye(4, requires_grad=True)
    header.logits(embeddings, torch.arange(4)).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_prelu_is_prelu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain, fast = torch.nn.PReLU(3), PReLU(3)
    with torch.no_grad():
        for layer in (plain, fast):
            layer.weight.copy_(torch.tensor([0.25, -0.5, 1.5]))
    faces, grad = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, 3, 4, 4).to(dtype)
    given = [faces.clone().requires_grad_() for _ in range(2)]
    outputs = [plain.to(dtype)(given[0]), fast(given[1])]
    for output in outputs:
        output.backward(grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(given[1].grad, given[0].grad)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad.float(), rtol=tolerance, atol=tolerance)
