"""The private functions of torch behind `FusedConv`: tried once, and replaced by plain convolutions where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import nn

from model import fast
from model.face_points import FacePoints
from model.fast import FusedConv, fuse_convolutions


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    fast._fused_convolutions_work.cache_clear()
    yield
    fast._fused_convolutions_work.cache_clear()


def results() -> tuple[bool, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), torch.randn(2, 8, 6, 6)
    fused = FusedConv(conv, "relu")
    return fused.onednn, fused(x.contiguous(memory_format=torch.channels_last)), conv(x).relu()


def test_they_are_used_where_they_work() -> None:
    used, found, expected = results()
    assert used == torch.backends.mkldnn.is_available()
    torch.testing.assert_close(found, expected)


def test_other_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fast.ACTIVATIONS, "relu", ("none", [], ""))
    with pytest.warns(UserWarning, match="their results differ"):
        used, found, expected = results()
    assert not used
    torch.testing.assert_close(found, expected)


def test_a_function_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(FusedConv, "_pack", gone)
    with pytest.warns(UserWarning, match=r"they end in an error \(no such operator\)"):
        used, found, expected = results()
    assert not used
    torch.testing.assert_close(found, expected)
    assert not FusedConv(nn.Conv2d(1, 1, 1)).onednn, "and it is not tried again"


def test_the_trial_takes_no_random_numbers() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fast._fused_convolutions_work(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_network_of_points_is_the_same(count: int) -> None:
    torch.manual_seed(0)
    network = FacePoints().requires_grad_(False)
    windows = torch.randint(0, 256, (count, 192, 192, 3), dtype=torch.uint8)
    points, logits = network(windows)
    fast = fuse_convolutions(deepcopy(network).to(memory_format=torch.channels_last))
    for _ in range(2):  # its inputs and weights are as before
        found, certain = fast(windows)
        torch.testing.assert_close(found, points, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(certain, logits, rtol=1e-4, atol=1e-4)
