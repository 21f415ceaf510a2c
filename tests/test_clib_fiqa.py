"""CLIB-FIQA against numbers computed with the published code, at its full size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_tensors import golden_shapes, recipe_fill, recipe_tensors, relative_error, shapes_of
from torch import Tensor

from model.checkpoint import CheckpointError
from model.clib_fiqa import ClibFiqa, expected_quality, factor_joint, marginals, prompt_tokens
from model.clip import CLIP
from model.confidence import ConfidenceMLP
from model.face_trunk import FaceTrunk
from model.prompts import AXES, JOINT_SHAPE, prompts_hash

PROBABILITY = 1e-5
FEATURE = 1e-4  # of the largest feature


@pytest.fixture(scope="module")
def published(golden: Path) -> Mapping[str, np.ndarray]:
    return np.load(golden / "clib_forward.npz")


@pytest.fixture(scope="module")
def full(golden: Path) -> ClibFiqa:
    """The published size, with text features through its text tower."""
    return ClibFiqa.from_tensors(recipe_tensors(golden / "clip_rn50_keys.json"))


@pytest.fixture(scope="module")
def tiny(golden: Path) -> ClibFiqa:
    return ClibFiqa.from_tensors(recipe_tensors(golden / "clip_tiny_keys.json"))


def batch(network: ClibFiqa, images: np.ndarray) -> Tensor:
    resized = np.stack([network.preprocessing.resize(image) for image in images])
    return network.preprocessing.normalise(torch.from_numpy(resized))


@torch.no_grad()
def test_published_forward(full: ClibFiqa, published: Mapping[str, np.ndarray]) -> None:
    images = batch(full, published["images"])
    assert relative_error(full.clip.encode_image(images), published["image_features"]) < FEATURE
    assert relative_error(full.logits(images), published["logits"]) < FEATURE
    joint = full(images)
    np.testing.assert_allclose(joint, published["joint"], atol=PROBABILITY)
    for axis, distribution in marginals(joint).items():
        name = "quality_dist" if axis == "quality" else axis
        np.testing.assert_allclose(distribution, published[name], atol=PROBABILITY)
    scores = expected_quality(marginals(joint)["quality"])
    np.testing.assert_allclose(scores, published["quality"], atol=PROBABILITY)


@torch.no_grad()
def test_published_text_features(full: ClibFiqa, published: Mapping[str, np.ndarray]) -> None:
    first = full.clip.encode_text(prompt_tokens()[:8])
    assert relative_error(first, published["text_features_first8"]) < FEATURE
    expected = torch.from_numpy(published["text_features_first8"] / published["text_features_norm"][:8, None])
    assert relative_error(full.text_features[:8], expected) < FEATURE
    norms = full.text_features.norm(dim=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_published_confidence_perceptron(golden: Path) -> None:
    values = np.load(golden / "losses.npz")
    network = ConfidenceMLP.from_tensors(recipe_tensors(golden / "mlp_keys.json"))
    assert shapes_of(network) == golden_shapes(golden / "mlp_keys.json")
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(values["mlp_in"])), values["mlp_out"], atol=1e-6)


def test_prompts_are_cut_behind_the_longest() -> None:
    tokens = prompt_tokens()
    assert tokens.shape == (360, 29)
    assert (tokens == 49407).sum(dim=1).eq(1).all()


def test_marginals_of_a_known_joint() -> None:
    joint = torch.rand(4, 360, generator=torch.Generator().manual_seed(0)).softmax(-1)
    cube = joint.numpy().reshape(-1, *JOINT_SHAPE)
    for number, (axis, levels) in enumerate(AXES.items(), start=1):
        others = tuple(other for other in range(1, 7) if other != number)
        distribution = marginals(joint)[axis]
        assert distribution.shape == (4, len(levels))
        np.testing.assert_allclose(distribution, cube.sum(others), atol=1e-6)
    np.testing.assert_allclose(factor_joint(joint), cube.sum(-1).reshape(4, 72), atol=1e-6)


def test_expected_quality_of_certain_levels() -> None:
    torch.testing.assert_close(expected_quality(torch.eye(5)), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))


@torch.no_grad()
def test_disk_layout_round_trip(tiny: ClibFiqa, golden: Path) -> None:
    images = batch(tiny, np.load(golden / "clib_forward.npz")["images"])
    clip_keys = golden_shapes(golden / "clip_tiny_keys.json").keys()
    whole, image_only = tiny.to_tensors(), tiny.to_tensors(text_tower=False)
    assert whole.keys() == clip_keys | {"text_features"}
    assert {key.split(".")[0] for key in image_only} == {"visual", "logit_scale", "text_features"}
    for tensors in (whole, image_only):
        assert torch.equal(ClibFiqa.from_tensors(tensors, {"prompts": prompts_hash()})(images), tiny(images))


@torch.no_grad()
def test_text_features_follow_the_text_tower(tiny: ClibFiqa) -> None:
    network = ClibFiqa.from_tensors(tiny.to_tensors())
    network.clip.ln_final.weight.mul_(1.5).add_(0.1 * torch.randn_like(network.clip.ln_final.weight))
    assert torch.equal(network.text_features, tiny.text_features)
    network.refresh_text_features()
    assert not torch.allclose(network.text_features, tiny.text_features, atol=1e-3)
    torch.testing.assert_close(network.text_features, network.encode_prompts())


def test_training_reaches_both_towers(tiny: ClibFiqa) -> None:
    network = ClibFiqa.from_tensors(tiny.to_tensors())
    images = torch.randn(2, 3, 224, 224)
    network.logits(images, network.encode_prompts()).logsumexp(-1).sum().backward()
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        gradient = network.clip.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


@torch.no_grad()
def test_scale_is_applied_in_float32(tiny: ClibFiqa, golden: Path) -> None:
    images = batch(tiny, np.load(golden / "clib_forward.npz")["images"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = tiny.logits(images), tiny.clip.encode_image(images)
    assert features.dtype == torch.bfloat16
    expected = torch.nn.functional.normalize(features.float(), dim=-1) @ tiny.text_features.T
    torch.testing.assert_close(logits, expected * tiny.clip.logit_scale.exp(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_face_trunk_as_image_tower(golden: Path) -> None:
    shapes = golden_shapes(golden / "face_trunk_keys.json")
    tensors = recipe_fill({f"visual.{key}": shape for key, shape in shapes.items()} | {"logit_scale": ()})
    tensors["text_features"] = torch.nn.functional.normalize(torch.randn(360, 128), dim=1)
    network = ClibFiqa.from_tensors(tensors)
    assert isinstance(network.clip.visual, FaceTrunk)
    assert network.preprocessing.size == 112
    joint = network(batch(network, np.load(golden / "mfn_forward.npz")["images"]))
    torch.testing.assert_close(joint.sum(1), torch.ones(3))


def test_metadata_preprocessing_wins(tiny: ClibFiqa) -> None:
    metadata = {"preprocessing": '{"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'}
    assert ClibFiqa.from_tensors(tiny.to_tensors(), metadata).preprocessing.mean == (0.5, 0.5, 0.5)


def test_other_sentences_are_refused(tiny: ClibFiqa) -> None:
    with pytest.raises(CheckpointError, match="other sentences"):
        ClibFiqa.from_tensors(tiny.to_tensors(), {"prompts": prompts_hash(["a dog"])})


def test_checkpoint_without_any_text_is_refused(tiny: ClibFiqa) -> None:
    tensors = tiny.to_tensors(text_tower=False)
    del tensors["text_features"]
    with pytest.raises(CheckpointError, match="neither text_features nor a text tower"):
        ClibFiqa.from_tensors(tensors)


def test_text_features_of_another_width_are_refused(tiny: ClibFiqa) -> None:
    with pytest.raises(CheckpointError, match=r"text_features has the shape \(360, 7\) instead of \(360, 64\)"):
        ClibFiqa.from_tensors({**tiny.to_tensors(), "text_features": torch.zeros(360, 7)})


def test_building_copies_the_tensors(tiny: ClibFiqa) -> None:
    network = ClibFiqa(CLIP.from_tensors(tiny.clip.state_dict()), tiny.text_features.clone())
    with torch.no_grad():
        network.clip.visual.conv1.weight.zero_()
    assert tiny.clip.visual.conv1.weight.abs().sum() > 0
