"""CLIP's towers: the published keys and shapes, and open_clip as a second implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from recipe_tensors import golden_shapes, recipe_fill, recipe_tensors, relative_error, shapes_of

from model.checkpoint import CheckpointError
from model.clip import CLIP, TEXT_TOWER_KEYS, ModifiedResNet, TextShape
from model.prompts import joint_prompts
from model.tokenizer import tokenize


@pytest.fixture(scope="module")
def tiny(golden: Path) -> CLIP:
    return CLIP.from_tensors(recipe_tensors(golden / "clip_tiny_keys.json"))


def test_published_size_has_the_published_keys(golden: Path) -> None:
    clip = CLIP(ModifiedResNet((3, 4, 6, 3), width=64, output_dim=1024, heads=32), TextShape())
    assert list(shapes_of(clip).items()) == list(golden_shapes(golden / "clip_rn50_keys.json").items())
    assert sum(parameter.numel() for parameter in clip.parameters()) == 102_007_137


def test_tiny_size_is_read_from_the_shapes(golden: Path, tiny: CLIP) -> None:
    assert list(shapes_of(tiny).items()) == list(golden_shapes(golden / "clip_tiny_keys.json").items())
    assert tiny.text_shape == TextShape(width=64, layers=2, heads=1)
    assert tiny.visual.attnpool.heads == 4
    assert tiny.preprocessing.size == 224


@pytest.mark.parametrize(
    ("layers", "width", "image_size", "text"),
    [
        ((1, 1, 1, 1), 8, 224, TextShape(64, 2, 1)),
        ((2, 1, 3, 1), 16, 96, TextShape(128, 3, 2, context_length=50)),
        ((3, 4, 6, 3), 24, 288, TextShape(192, 1, 3)),
    ],
)
def test_same_features_as_open_clip(layers: tuple[int, ...], width: int, image_size: int, text: TextShape) -> None:
    from open_clip.model import CLIP as OpenClip

    reference = OpenClip(
        embed_dim=32,
        vision_cfg={"layers": layers, "width": width, "image_size": image_size, "head_width": 64},
        text_cfg={
            "context_length": text.context_length,
            "vocab_size": text.vocabulary,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
        quick_gelu=True,
    ).eval()
    tensors = recipe_fill({key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()})
    reference.load_state_dict(tensors)
    ours = CLIP.from_tensors(tensors)
    images = torch.from_numpy(np.stack([recipe.mirror_image(seed, image_size) for seed in (3, 4)]))
    images = ours.preprocessing.normalise(images)
    tokens = tokenize([*joint_prompts()[::50], "a face"], text.context_length)
    with torch.no_grad():
        assert relative_error(ours.encode_image(images), reference.encode_image(images)) < 1e-5
        assert relative_error(ours.encode_text(tokens), reference.encode_text(tokens)) < 1e-5
        assert float(ours.logit_scale) == float(reference.logit_scale)


@torch.no_grad()
def test_shorter_context_changes_no_feature(tiny: CLIP) -> None:
    tokens = tokenize(["a photo of a face", "a face"])
    assert relative_error(tiny.encode_text(tokens[:, :7]), tiny.encode_text(tokens)) < 1e-6


@torch.no_grad()
def test_memory_format_and_batch_change_no_feature(tiny: CLIP) -> None:
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = tiny.encode_image(images)
    assert relative_error(tiny.encode_image(images.to(memory_format=torch.channels_last)), expected) < 1e-5
    assert relative_error(torch.cat([tiny.encode_image(image[None]) for image in images]), expected) < 1e-5


def test_heads_follow_the_metadata(golden: Path) -> None:
    tensors = recipe_tensors(golden / "clip_tiny_keys.json")
    clip = CLIP.from_tensors(tensors, {"text_heads": "4", "vision_heads": "8"})
    assert clip.text_shape is not None
    assert clip.text_shape.heads == 4
    assert clip.visual.attnpool.heads == 8


def test_text_tower_may_be_absent(golden: Path, tiny: CLIP) -> None:
    tensors = recipe_tensors(golden / "clip_tiny_keys.json")
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(TEXT_TOWER_KEYS)}
    assert "visual.attnpool.positional_embedding" in tensors
    clip = CLIP.from_tensors(tensors)
    images = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images), tiny.encode_image(images))
    with pytest.raises(ValueError, match="no text tower"):
        clip.encode_text(tokenize("a face"))


def test_image_of_another_size_is_refused(tiny: CLIP) -> None:
    with pytest.raises(AssertionError, match=r"expected images \(N, 3, 224, 224\)"):
        tiny.encode_image(torch.zeros(1, 3, 112, 112))


def test_misfits_are_named(golden: Path) -> None:
    tensors = recipe_tensors(golden / "clip_tiny_keys.json")
    del tensors["visual.bn1.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors["ln_final.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        CLIP.from_tensors(tensors)
    for part in ("missing (visual.bn1.bias)", "unexpected (extra.weight)", "ln_final.bias (3,) instead of (64,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "key", ["visual.attnpool.positional_embedding", "visual.layer1.0.conv1.weight", "token_embedding.weight"]
)
def test_missing_size_is_named(golden: Path, key: str) -> None:
    tensors = recipe_tensors(golden / "clip_tiny_keys.json")
    del tensors[key]
    with pytest.raises(CheckpointError, match=key):
        CLIP.from_tensors(tensors)


def test_new_networks_are_initialised() -> None:
    torch.manual_seed(0)
    clip = CLIP(ModifiedResNet((1, 1, 1, 1), width=8, output_dim=16, heads=4), TextShape(64, 2, 1))
    with torch.no_grad():
        features = clip.eval().encode_image(torch.randn(2, 3, 224, 224))
        text = clip.encode_text(tokenize(["a face", "no face"]))
    for output in (features, text):
        assert output.isfinite().all()
        assert 1e-3 < output.std() < 1e2
