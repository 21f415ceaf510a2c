"""State dicts with the deterministic weights of `golden/recipe.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import recipe
import torch
from torch import Tensor

from model.checkpoint import save_checkpoint
from model.clib_fiqa import ClibFiqa


def golden_shapes(keys_file: Path) -> dict[str, tuple[int, ...]]:
    """The keys and shapes that the published code has, in its order."""
    return {key: tuple(shape) for key, shape in json.loads(keys_file.read_text()).items()}


def recipe_tensors(keys_file: Path) -> dict[str, Tensor]:
    """A state dict of those keys and shapes."""
    return recipe_fill(golden_shapes(keys_file))


def recipe_fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict of any keys and shapes."""
    return {key: torch.from_numpy(np.asarray(value)) for key, value in recipe.state_dict(shapes).items()}


def save_tiny_clib_fiqa(path: Path, golden: Path) -> Path:
    """A CLIB-FIQA of width 8 with its text features, 224 pixels, as a checkpoint to score with."""
    network = ClibFiqa.from_tensors(recipe_tensors(golden / "clip_tiny_keys.json"))
    save_checkpoint(path, network.to_tensors(text_tower=False), {"system": "clib-fiqa"})
    return path


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a network, in its order."""
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def relative_error(found: Tensor, expected: np.ndarray | Tensor) -> float:
    """The largest difference, in units of the largest expected value."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    return float((found.detach() - expected).abs().max() / expected.abs().max())
