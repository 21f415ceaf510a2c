"""The networks of DSL-FIQA against numbers computed with the published code, and small networks of the same family."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import recipe
import torch
from dsl_fiqa_parts import (
    SIZE,
    landmarks_for,
    published_shapes,
    published_tensors,
    small_encoder,
    small_network,
    small_shape,
)
from recipe_tensors import golden_shapes, recipe_tensors, relative_error, shapes_of
from torch import Tensor

from model import CheckpointError, load
from model.checkpoint import save_checkpoint
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa, DslFiqaShape, positional_encoding
from model.fast_dsl_fiqa import accelerate_dsl_fiqa


class Published(NamedTuple):
    values: Any  # of dslfiqa_forward.npz
    network: DslFiqa
    crops: Tensor  # (2, 3, 384, 384)
    degradation: tuple[Tensor, Tensor]
    stages: dict[str, Tensor]
    scores: Tensor


@pytest.fixture(scope="module")
def published(golden: Path, shared: Path) -> Published:
    """The full-size networks after one forward pass, with the output of each stage."""
    values = np.load(shared / "golden" / "dsl_fiqa" / "dslfiqa_forward.npz")
    encoder = DegradationEncoder.from_tensors(recipe_tensors(golden / "dsl_fiqa" / "dslfiqa_de_keys.json"))
    network = DslFiqa.from_tensors(published_tensors(golden))
    stages: dict[str, Tensor] = {}
    names = {"embed_mlp", "tablock1", "tablock2", "conv1", "conv2", "swintransformer1", "swintransformer2"}
    for name in (*names, "conv_decoder", "decoder.0", "decoder.1", "decoder.2"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: stages.update({name.replace(".", ""): output})
        )
    with torch.inference_mode():
        crops = network.preprocessing.normalise(torch.from_numpy(values["crops"]))
        degradation = encoder(crops)
        landmarks = torch.from_numpy(values["landmark_vectors"])
        scores = network.score(crops, degradation[0], landmarks)
        stages["vit_tokens"] = network.trunk_tokens(crops)
        stages["landmark_encoding"] = positional_encoding(landmarks)
    return Published(values, network, crops, degradation, dict(stages), scores)


def test_published_crops_are_of_the_recipe(published: Published) -> None:
    image = recipe.mirror_image(150, 512)
    for crop, (top, left) in zip(published.values["crops"], published.values["boxes_top_left"], strict=True):
        assert np.array_equal(crop, image[top : top + 384, left : left + 384])


def test_published_degradation_features(published: Published) -> None:
    features, projected = published.degradation
    assert relative_error(features, published.values["de_features"]) < 1e-5
    assert relative_error(projected, published.values["de_mlp"]) < 1e-5


def test_published_stages(golden: Path, published: Published) -> None:
    shapes = json.loads((golden / "dsl_fiqa" / "dslfiqa_shapes.json").read_text())
    for name, found in published.stages.items():
        assert list(found.shape) == shapes[name]
        mean_std = torch.stack([found.flatten(1).mean(1), found.flatten(1).std(1)], 1).double()
        assert relative_error(mean_std, published.values[f"{name}/mean_std"]) < 1e-4, name
        part = found[:, :16] if found.ndim > 2 else found[:, :512]
        part = part[..., :4, :4] if found.ndim == 4 else part[..., :16] if found.ndim == 3 else part
        assert relative_error(part, published.values[f"{name}/slice"]) < 1e-4, name
    assert len(published.stages) == 13
    assert relative_error(published.stages["embed_mlp"], published.values["embed_mlp/full"]) < 1e-5
    decoded = published.values["decoder2/full_f16"].astype(np.float32)
    assert relative_error(published.stages["decoder2"], decoded) < 1e-3  # stored in half precision


@torch.inference_mode()
def test_published_scores(published: Published) -> None:
    values, network = published.values, published.network
    landmarks = torch.from_numpy(values["landmark_vectors"])
    scores, weights = network.token_scores(published.stages["decoder2"], landmarks)
    assert relative_error(scores, values["token_score"]) < 1e-4
    assert relative_error(weights, values["token_weight"]) < 1e-4
    for name in ("score", "score_float64", "score_batch1"):
        expected = torch.from_numpy(values[name]).double()
        torch.testing.assert_close(published.scores.double(), expected, rtol=1e-5, atol=0)
    without = network.token_scores(published.stages["decoder2"], -torch.ones_like(landmarks))
    found = (without[0] * without[1]).sum(1) / without[1].sum(1)
    expected = torch.from_numpy(values["score_all_minus1_landmarks"])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@torch.inference_mode()
def test_published_modules(published: Published, shared: Path) -> None:
    with np.load(shared / "golden" / "dsl_fiqa" / "dslfiqa_modules.npz") as values:
        given = {name: torch.from_numpy(values[name]) for name in values.files}
    network: Any = published.network
    tokens, queries = given["decoder0_x"], given["decoder0_query"]
    found = {
        "decoder0_attn_out": network.decoder[0].attn(tokens, queries),
        "decoder0_out": network.decoder[0](tokens, queries),
        "swin2_out": network.swintransformer2(given["swin2_x"]),
        "tablock2_0_out": network.tablock2[0](given["tablock2_0_x"]),
    }
    for name, output in found.items():
        assert relative_error(output, given[name]) < 1e-5, name


def test_sizes_come_from_the_published_shapes(golden: Path) -> None:
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in published_shapes(golden).items()}
        encoder = DegradationEncoder()
    assert DslFiqaShape.of_tensors(tensors) == DslFiqaShape()
    assert shapes_of(encoder) == golden_shapes(golden / "dsl_fiqa" / "dslfiqa_de_keys.json")


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize("landmarks", ["full", "light", "none"])
@torch.inference_mode()
def test_small_networks_load_from_one_file(tmp_path: Path, landmarks: Any, spare: bool) -> None:
    network = small_network(landmarks, spare)
    save_checkpoint(tmp_path / "small.safetensors", network.to_tensors(), {})
    loaded = load(tmp_path / "small.safetensors")
    assert isinstance(loaded, DslFiqa)
    assert loaded.shape == network.shape
    assert loaded.preprocessing.size == SIZE
    crops = torch.randn(3, 3, SIZE, SIZE)
    given = landmarks_for(network, 3)
    expected = network(crops, given)
    assert expected.shape == (3,)
    assert torch.equal(loaded(crops, given), expected)


@torch.inference_mode()
def test_published_pair_of_files(tmp_path: Path) -> None:
    network = small_network("full", spare=True)
    torch.save(network.encoder.state_dict(), tmp_path / "DE.pt")
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("encoder.")}
    torch.save(own, tmp_path / "IQA.pt")
    loaded, encoder = load(tmp_path / "IQA.pt"), load(tmp_path / "DE.pt")
    crops, landmarks = torch.randn(2, 3, SIZE, SIZE), landmarks_for(network, 2)
    with pytest.raises(CheckpointError, match=r"no degradation encoder: give it that of DE.pt"):
        loaded(crops, landmarks)
    loaded.attach_encoder(encoder)
    assert torch.equal(loaded(crops, landmarks), network(crops, landmarks))


def test_queue_of_the_loss_is_no_part_of_the_encoder() -> None:
    encoder = small_encoder()
    loaded = DegradationEncoder.from_tensors(encoder.state_dict() | {"style_queue": torch.zeros(4, 2)})
    assert shapes_of(loaded) == shapes_of(encoder)


def test_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(CheckpointError, match="gives 24 channels and the quality network reads 16"):
        small_network(encoder=False).attach_encoder(DegradationEncoder((16, 16, 24)))


def test_misfits_are_listed() -> None:
    tensors = small_network(encoder=False).state_dict()
    del tensors["conv_decoder.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(conv_decoder.bias\)"):
        DslFiqa.from_tensors(tensors)
    with pytest.raises(CheckpointError, match="size is unknown"):
        DslFiqa.from_tensors({"conv_decoder.weight": torch.zeros(1, 1, 1, 1)})
    with pytest.raises(CheckpointError, match="no DSL-FIQA network has 3 levels of 4 blocks"):
        DslFiqa.from_tensors(tensors | {"conv1.weight": torch.zeros(32, 192, 1, 1)})


@torch.inference_mode()
def test_each_crop_is_scored_on_its_own() -> None:
    network = small_network()
    crops, landmarks = torch.randn(5, 3, SIZE, SIZE), landmarks_for(network, 5)
    alone = torch.cat([network(crops[i : i + 1], landmarks[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(network(crops, landmarks), alone, rtol=1e-5, atol=1e-6)


def test_every_used_parameter_trains() -> None:
    network = small_network()
    crops, landmarks = torch.randn(2, 3, SIZE, SIZE), landmarks_for(network, 2)
    network(crops, landmarks).sum().backward()
    untouched = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert {name.split(".")[1] for name in untouched} == {"norm", "mlp"}  # the trunk's last norm, the loss's projection


@torch.inference_mode()
def test_light_landmarks_know_where() -> None:
    layer = small_network().light_landmarks
    points = torch.full((1, 68, 2), -10.0)
    nothing = layer(points).view(4, 4)
    points[0, 30] = torch.tensor([0.875, 0.125])  # right, above
    moved = (layer(points).view(4, 4) - nothing).abs()
    assert moved.argmax() == 3
    assert moved[3].max() < 1e-6
    assert torch.allclose(nothing, nothing[0, 0])


def test_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ImportError, match="pip install timm"):
        DslFiqa(small_shape())


@pytest.mark.parametrize("landmarks", ["full", "light", "none"])
@torch.inference_mode()
def test_the_fast_form_is_the_same_function(landmarks: str) -> None:
    network = small_network(landmarks)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    crops = torch.randn(3, 3, SIZE, SIZE, generator=generator)
    given = None if landmarks == "none" else landmarks_for(network, 3)
    expected = network(crops, given)
    fast = accelerate_dsl_fiqa(deepcopy(network), torch.float32)
    for _ in range(2):  # the second time the weights are laid out already
        torch.testing.assert_close(fast(crops, given), expected, rtol=1e-5, atol=1e-6)
    half = accelerate_dsl_fiqa(deepcopy(network), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = half(crops, given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_on_other_devices_the_network_stays_as_it_is() -> None:
    network = small_network().to("meta")
    names = [type(module) for module in network.modules()]
    assert accelerate_dsl_fiqa(network, torch.float32) is network
    assert [type(module) for module in network.modules()] == names
