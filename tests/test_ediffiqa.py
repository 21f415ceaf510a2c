"""eDifFIQA's networks against numbers computed with the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_tensors import golden_shapes, recipe_fill, recipe_tensors, relative_error, shapes_of

from model import load
from model.backbones import read_backbone
from model.checkpoint import CheckpointError
from model.ediffiqa import EDifFIQA
from model.face_trunk import FaceTrunk
from model.iresnet import IResNet
from model.mobilefacenet import MobileFaceNetEmbedding


@pytest.mark.parametrize("variant", ["L", "M", "S", "T"])
@torch.no_grad()
def test_published_forward(golden: Path, variant: str) -> None:
    keys = golden / "ediffiqa" / f"ediffiqa{variant}_keys.json"
    network = EDifFIQA.from_tensors(recipe_tensors(keys))
    assert list(shapes_of(network).items()) == list(golden_shapes(keys).items())
    values = np.load(golden / "ediffiqa" / "ediffiqa_forward.npz")
    features, quality = network(network.preprocessing.normalise(torch.from_numpy(values["images"])))
    assert relative_error(features, values[f"{variant}_features"]) < 1e-4
    np.testing.assert_allclose(quality, values[f"{variant}_quality"], rtol=2e-4, atol=1e-6)


@torch.no_grad()
def test_one_image_is_a_batch(golden: Path) -> None:
    network = EDifFIQA.from_tensors(recipe_tensors(golden / "ediffiqa" / "ediffiqaT_keys.json"))
    torch.manual_seed(0)
    faces = torch.randn(3, 3, 112, 112)
    features, quality = network(faces[:1])
    assert features.shape == (1, 512)
    assert quality.shape == (1, 1)
    torch.testing.assert_close(quality, network(faces)[1][:1])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.model."])
def test_files_load_with_a_common_prefix(tmp_path: Path, golden: Path, prefix: str) -> None:
    tensors = recipe_tensors(golden / "ediffiqa" / "ediffiqaT_keys.json")
    torch.save({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    network = load(tmp_path / "pytorch_model.bin")
    assert isinstance(network, EDifFIQA)
    assert isinstance(network.base_model, MobileFaceNetEmbedding)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[key])


@torch.no_grad()
def test_any_size_and_backbone_loads() -> None:
    torch.manual_seed(0)
    small = IResNet((1, 1, 1, 1), (16, 16, 24, 32), embedding=48, quality_head=False, image_size=64)
    for backbone, features in ((small, 48), (FaceTrunk(image_size=64), 128)):
        network = EDifFIQA(backbone, features, width=20).eval()
        loaded = EDifFIQA.from_tensors(network.state_dict())
        assert type(loaded.base_model) is type(backbone)
        faces = torch.randn(2, 3, 64, 64)
        for found, expected in zip(loaded(faces), network(faces), strict=True):
            assert torch.equal(found, expected)


def test_errors_name_the_keys(golden: Path) -> None:
    tensors = recipe_tensors(golden / "ediffiqa" / "ediffiqaS_keys.json")
    del tensors["base_model.features.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(base_model\.features\.weight\)"):
        EDifFIQA.from_tensors(tensors)
    with pytest.raises(CheckpointError, match="no backbone of a known kind"):
        EDifFIQA.from_tensors({key: tensor for key, tensor in tensors.items() if key.startswith("mlp.")})


def test_a_backbone_is_read_without_its_quality_head(golden: Path) -> None:
    plain = golden_shapes(golden / "baselines" / "iresnet18_keys.json")
    tensors = recipe_fill({**plain, "qs.weight": (1, 512), "qs.bias": (1,)})
    backbone = read_backbone(tensors)
    assert isinstance(backbone, IResNet)
    assert shapes_of(backbone) == plain
