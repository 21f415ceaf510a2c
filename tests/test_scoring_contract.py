"""What a method hands to the scorer: several crops an image, extras, remarks; and how its results come back."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from recipe_tensors import save_tiny_clib_fiqa
from torch import nn

from faces.reader import ImageError
from model.prompts import AXES
from scoring import Score, Scorer, scorer
from scoring.contract import Batch, Columns, Method, Prepared
from scoring.methods import METHODS
from scoring.scorer import on_host

SIDE = 8


class Brightness(nn.Module):
    """A network that has nothing to learn."""

    metadata: Mapping[str, str] = {}


def three_corners(bonus: float, rgb: np.ndarray, path: str) -> Prepared:
    """Three crops of a picture and a number; a picture whose first pixel is black has a remark."""
    if min(rgb.shape[:2]) < SIDE:
        raise ImageError("too_small", f"at least {SIDE} pixels were expected")
    crops = np.stack([rgb[:SIDE, :SIDE], rgb[-SIDE:, :SIDE], rgb[-SIDE:, -SIDE:]])
    return Prepared(crops, {"bonus": bonus}, "ok" if rgb[0, 0].any() else "no_landmarks")


class BrightnessScoring:
    """Quality is the mean of all crops, plus the number; an image that is white says so."""

    def __init__(self, network: Brightness, dtype: torch.dtype, device: torch.device, align: str) -> None:
        self.prepare = partial(three_corners, 1000.0)
        self.batches: list[tuple[int, ...]] = []

    def predict(self, batch: Batch) -> Columns:
        self.batches.append(tuple(batch.crops.shape))
        means = batch.crops.float().mean(dim=(1, 2, 3, 4))
        bonus = torch.tensor([extra["bonus"] for extra in batch.extra])
        remarks = ["white" if mean == 255 else "ok" for mean in means.tolist()]
        pose = torch.tensor([[0.25, 0.5, 0.25]]).expand(len(means), 3)
        return Columns(means + bonus, {"pose": pose}, remarks)


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scorer:
    method = Method("", Brightness, BrightnessScoring, crops=3)
    monkeypatch.setitem(METHODS, "brightness", method)
    monkeypatch.setattr(scorer, "load_network", lambda path: Brightness())
    (tmp_path / "weights").touch()
    return Scorer("brightness", tmp_path / "weights", device="cpu")


def grey(value: int, side: int = 20) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_several_crops_extras_and_remarks(brightness: Scorer) -> None:
    scores = brightness.score([grey(7), grey(0), grey(9, side=4), grey(255), grey(30)])
    assert [score.status for score in scores] == ["ok", "no_landmarks", "too_small", "white", "ok"]
    assert [score.quality for score in scores] == [1007, 1000, None, 1255, 1030]
    assert scores[1].factors == {"pose": {"profile": 0.25, "slight angle": 0.5, "frontal": 0.25}}
    assert repr(scores[1]) == "Score(None, status='no_landmarks', quality=1000.0000, pose='slight angle')"
    assert brightness.score(grey(9, side=4)) == Score(None, "too_small")


def test_the_default_batch_counts_crops(brightness: Scorer, tmp_path: Path) -> None:
    assert brightness.batch_size == 16 // 3
    brightness.score([grey(i) for i in range(1, 8)])
    shapes = brightness.predict.__self__.batches  # type: ignore[attr-defined]
    assert shapes == [(5, 3, SIDE, SIDE, 3), (2, 3, SIDE, SIDE, 3)]


def test_several_crops_come_from_workers_too(brightness: Scorer, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(grey(i)).save(path)
    here = list(brightness.stream(paths))
    assert list(brightness.stream(paths, workers=2)) == here
    assert [score.quality for score in here] == [1000, 1001, 1002, 1003, 1004, 1005]


@pytest.mark.parametrize("swapped", [False, True])
def test_prepare_is_public_and_picklable(golden: Path, tmp_path: Path, swapped: bool) -> None:
    weights = save_tiny_clib_fiqa(tmp_path / "tiny.safetensors", golden)
    prepare = Scorer(weights=weights, swapped_channels=swapped).prepare
    again = pickle.loads(pickle.dumps(prepare))
    image = recipe.mirror_image(0)
    expected = Image.fromarray(image[..., ::-1] if swapped else image).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(again(image).crops, np.array(expected)[None])


def test_columns_come_back_in_one_copy() -> None:
    rng = torch.Generator().manual_seed(0)
    axes = {axis: torch.rand(5, len(levels), generator=rng) for axis, levels in AXES.items()}
    columns = Columns(torch.rand(5, generator=rng), axes)
    copies = CountCopies()
    with copies:
        quality, found = on_host(columns)
    assert copies.count == 1
    assert np.array_equal(quality, columns.quality)
    assert list(found) == list(axes)
    assert all(np.array_equal(found[axis], axes[axis]) for axis in axes)
    quality, found = on_host(Columns(torch.ones(3, dtype=torch.bfloat16)))
    assert (quality.tolist(), found) == ([1, 1, 1], {})


class CountCopies(torch.overrides.TorchFunctionMode):
    """Counts the ways from a device to the host."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        self.count += name in ("cpu", "item", "tolist") or (name == "to" and "cpu" in map(str, args[1:]))
        return function(*args, **(kwargs or {}))
