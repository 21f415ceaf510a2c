"""Dynamic weight averaging and the learning rates against the published code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from methods.clib_fiqa.weighting import loss_weights
from training.schedule import cosine_wave, milestones


def test_dynamic_weight_averaging(golden):
    with np.load(golden / "losses.npz") as file:
        losses, weights, totals = (file[f"dwa_{name}"] for name in ("losses", "weights", "totals"))
    means = losses.mean(axis=1).tolist()  # (epoch, task)
    for epoch in range(len(losses)):
        found = loss_weights(means[:epoch], losses.shape[2])
        np.testing.assert_allclose(found, weights[:, epoch], atol=1e-6)
        np.testing.assert_allclose(losses[epoch] @ found.numpy(), totals[epoch], atol=1e-5)


def test_mean_over_the_factors():
    torch.testing.assert_close(loss_weights([[1.0] * 6] * 4, 6, "mean"), torch.tensor([1, 0.2, 0.2, 0.2, 0.2, 0.2]))


def test_a_loss_that_vanished_keeps_the_weights_finite():
    weights = loss_weights([[0.0, 1.0], [1.0, 1.0]], 2)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(2)


def test_published_wave():
    """specs: the rates of 25 epochs, in millionths; epochs that would start at 0 move one step on."""
    rates = [10, 9.05, 6.55, 3.45, 0.955, 0.955, 3.45, 6.55, 9.05, 10, 9.05, 6.55, 3.45, 0.955, 0.955, 3.45, 6.55, 9.05]
    rates += [10, 9.05, 6.55, 3.45, 0.955, 0.955, 3.45]
    used = [1e6 * cosine_wave(epoch, 1e-5, 5)[0] for epoch in range(25)]
    np.testing.assert_allclose(used, rates, atol=6e-3)
    announced = [cosine_wave(epoch, 1e-5, 5)[1] for epoch in range(25)]
    assert [epoch for epoch, rate in enumerate(announced) if rate == 0] == [5, 14, 23]


def test_wave_equals_the_scheduler_of_torch(golden):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for epoch in range(60):
        used, announced = cosine_wave(epoch, 1e-4, 5)
        assert announced == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-10)
        if announced == 0:
            optimizer.step()
            scheduler.step()
        assert used == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-10)
        optimizer.step()
        scheduler.step()


def test_one_fall_over_the_whole_run():
    rates = [cosine_wave(epoch, 1.0, 8)[0] for epoch in range(8)]
    assert rates[0] == 1
    assert all(a > b > 0 for a, b in pairwise(rates))


def test_milestones():
    assert [milestones(epoch, 1e-3, (3, 4)) for epoch in range(6)] == pytest.approx([1e-3] * 3 + [1e-4] + [1e-5] * 2)
