"""Small networks of DSL-FIQA, and folders of pictures in its published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import recipe
import torch
from PIL import Image
from recipe_tensors import golden_shapes, recipe_fill, shapes_of
from torch import Tensor

from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa, DslFiqaShape, Landmarks

SIZE = 64  # side of a crop
KEPT = ("attn_mask", "relative_position_index")  # constructed, not of the recipe


def small_shape(landmarks: Landmarks = "light", spare: bool = False) -> DslFiqaShape:
    """A network that runs in milliseconds."""
    return DslFiqaShape(
        image_size=SIZE,
        trunk_width=64,
        trunk_depth=4,
        trunk_classes=0,
        levels=2,
        tab_blocks=1,
        widths=(32, 32),
        depths=(2,),
        heads=2,
        swin_mlp=32,
        window=2,
        decoder_width=32,
        decoder_blocks=1,
        decoder_mlp=32,
        query_width=16,
        landmarks=landmarks,
        landmark_count={"full": 70, "light": 68, "none": 0}[landmarks],
        spare=spare,
    )


def small_network(landmarks: Landmarks = "light", spare: bool = False, encoder: bool = True) -> DslFiqa:
    """With random weights of seed 0, in eval mode."""
    torch.manual_seed(0)
    return DslFiqa(small_shape(landmarks, spare), small_encoder() if encoder else None).eval()


def small_encoder() -> DegradationEncoder:
    """The degradation encoder that the small network reads."""
    torch.manual_seed(1)
    return DegradationEncoder((16, 16, 16)).eval()


def landmarks_for(network: DslFiqa, count: int) -> torch.Tensor:
    """Random landmarks of `count` crops, in the form that the network takes."""
    generator = torch.Generator().manual_seed(2)
    if network.shape.landmarks == "light":
        return torch.rand(count, network.shape.landmark_count, 2, generator=generator)
    return torch.rand(count, network.shape.landmark_count, generator=generator) * 2 - 1


def write_set(folder: Path, count: int, size: int = 80) -> Path:
    """A set in the published layout: img/, landmark/ and label.json."""
    rng = np.random.default_rng(3)
    (folder / "img").mkdir(parents=True)
    (folder / "landmark").mkdir()
    names = [f"{index:02}.png" for index in range(count)]
    for index, name in enumerate(names):
        Image.fromarray(recipe.mirror_image(200 + index, size)).save(folder / "img" / name)
        np.save(folder / "landmark" / f"{name[:-4]}.npy", rng.uniform(5, size - 5, (68, 2)))
    labels = {"Image": names, "MOS": rng.uniform(0, 1, count).round(4).tolist()}
    (folder / "label.json").write_text(json.dumps(labels))
    return folder


def published_shapes(golden: Path) -> dict[str, tuple[int, ...]]:
    folder = golden / "dsl_fiqa"
    return golden_shapes(folder / "dslfiqa_iqa_keys.json") | golden_shapes(folder / "dslfiqa_vit_keys.json")


def published_tensors(golden: Path) -> dict[str, Tensor]:
    """The recipe's weights with the deviations that golden/README.md names."""
    shapes = published_shapes(golden)
    tensors = recipe_fill({key: shape for key, shape in shapes.items() if not key.endswith(KEPT)})
    for key, tensor in tensors.items():
        if key.startswith("tablock") and tensor.ndim == 2:
            tensors[key] = tensor * np.float32(0.4)
    tensors["fc_score.3.bias"] = tensors["fc_score.3.bias"] + 3
    with torch.device("meta"):
        assert shapes_of(DslFiqa()) == shapes
    swins = DslFiqa(small_published()).state_dict()
    return tensors | {key: swins[key] for key in shapes if key.endswith(KEPT)}


def small_published() -> DslFiqaShape:
    """A network whose Swin stacks have the published masks and little else."""
    return DslFiqaShape(
        trunk_width=64, widths=(32, 32), swin_mlp=32, decoder_width=32, decoder_mlp=32, landmarks="none", spare=False
    )
