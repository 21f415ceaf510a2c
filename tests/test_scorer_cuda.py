"""Scoring on CUDA. Without a GPU: a dry run on fake tensors, which have a device and a shape and no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from recipe_tensors import save_tiny_clib_fiqa
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.fast import PRECISIONS
from model.iresnet import IResNet
from scoring import Scorer
from scoring.contract import Columns

CUDA = torch.device("cuda", 0)


def to_fake_cuda(network: nn.Module) -> None:
    """Replace every tensor of a network by a fake one of the same shape on CUDA."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers, module.__dict__):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
                    tensors[name] = nn.Parameter(fake, False) if isinstance(tensor, nn.Parameter) else fake


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.save(IResNet((1, 1, 1, 1), (4, 8, 8, 8), 16).state_dict(), tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


@pytest.fixture
def clib_fiqa(tmp_path: Path, golden: Path) -> Path:
    return save_tiny_clib_fiqa(tmp_path / "tiny.safetensors", golden)


@pytest.mark.parametrize("name", ["clib_fiqa", "backbone", "clib-fiqa"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_stays_on_the_device(
    name: str, precision: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = name if "-" in name else request.getfixturevalue(name)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # no kernels of the CPU
    dry = Scorer(weights=weights, device="cpu", precision=precision)
    loaded = [dry._load(recipe.mirror_image(seed), "rgb") for seed in range(3)]
    pinned: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    dry.device = CUDA
    with FakeTensorMode():
        for part in vars(dry.predict.__self__).values():  # type: ignore[attr-defined]
            if isinstance(part, nn.Module):
                to_fake_cuda(part)
        columns = dry._start(loaded)
    assert columns is not None
    assert columns.quality.device == CUDA
    assert columns.quality.shape == (3,)
    assert {probabilities.device for probabilities in columns.axes.values()} <= {CUDA}
    assert pinned == [(3, *loaded[0].value.crops.shape)]


def test_the_next_batch_is_started_before_results_are_waited_for(
    clib_fiqa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    order = Scorer(weights=clib_fiqa, device="cpu", batch_size=2)
    finish = order._finish

    def start(batch: Any) -> Columns:
        events.append(f"start {len(events)}")
        return Columns(torch.zeros(len(batch)))

    def finished(batch: Any, columns: Any) -> Any:
        events.append(f"finish {len(events)}")
        return finish(batch, columns)

    monkeypatch.setattr(order, "_start", start)
    monkeypatch.setattr(order, "_finish", finished)
    faces = [recipe.mirror_image(seed) for seed in range(5)]
    for device, expected in (("cpu", "sfsfsf"), ("cuda", "ssfsff")):
        events.clear()
        order.device = torch.device(device)
        assert [score.quality for score in order.score(faces)] == [0.0] * 5
        assert "".join(event[0] for event in events) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.01), ("fp16", 0.005)])
def test_cuda_gives_the_scores_of_the_cpu(precision: str, tolerance: float) -> None:
    faces = np.stack([recipe.mirror_image(seed) for seed in range(600)])
    expected = [score.quality for score in Scorer("clib-fiqa", device="cpu").score(faces)]
    found = [score.quality for score in Scorer("clib-fiqa", device="cuda", precision=precision).score(faces)]
    assert found == pytest.approx(expected, abs=tolerance)
