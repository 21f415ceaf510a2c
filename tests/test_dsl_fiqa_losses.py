"""The losses of DSL-FIQA's trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.dsl_fiqa.losses import (
    QueueLoss,
    charbonnier_loss,
    cycle_loss,
    proximity_loss,
    soft_neighbours,
    squared_distances,
    supervised_contrastive_loss,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_published_charbonnier(golden: Path) -> None:
    values = np.load(golden / "dsl_fiqa" / "dslfiqa_charbonnier.npz")
    predicted = torch.from_numpy(values["pred"]).requires_grad_()
    target, epsilon = torch.from_numpy(values["target"]), float(values["epsilon"])
    loss = charbonnier_loss(predicted, target, epsilon)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(float(values["loss"]), dtype=torch.float64))
    torch.testing.assert_close(predicted.grad, torch.from_numpy(values["grad_pred"]))
    rows = [charbonnier_loss(p, t, epsilon) for p, t in zip(predicted.detach(), target, strict=True)]
    torch.testing.assert_close(torch.stack(rows), torch.from_numpy(values["loss_rows"]))


def test_soft_neighbours_and_the_way_back_by_hand() -> None:
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    near, far = np.exp([0, -4, -2]), np.exp([-2, -2, 0])  # of the squared distances 0, 4, 2 and 2, 2, 0
    expected = np.stack([near @ other.numpy() / near.sum(), far @ other.numpy() / far.sum()])
    torch.testing.assert_close(soft_neighbours(start, other, 1.0), torch.from_numpy(expected).float())
    back = np.exp(-((expected[:, None] - start.numpy()) ** 2).sum(2))
    loss = -np.log(back.diagonal() / back.sum(1)).mean()
    assert cycle_loss(start, other, 1.0).item() == pytest.approx(loss, rel=1e-5)


def test_distances_are_squared() -> None:
    a, b = unit(3, 5), unit(4, 5, seed=1)
    torch.testing.assert_close(squared_distances(a, b), torch.cdist(a, b) ** 2, rtol=1e-4, atol=1e-5)


def test_proximity_is_both_directions_and_can_be_reached() -> None:
    a, b = unit(6, 8), unit(9, 8, seed=1)
    both = (cycle_loss(a, b, 0.1) + cycle_loss(b, a, 0.1)) / 2
    torch.testing.assert_close(proximity_loss(a, b, 0.1), both)
    apart = torch.eye(6)
    assert proximity_loss(apart, apart, 0.05).item() < 1e-6
    same = unit(1, 8).expand(6, 8)
    assert proximity_loss(same, same, 0.05).item() == pytest.approx(np.log(6), rel=1e-4)


def test_coming_back_to_ones_own_kind_is_enough() -> None:
    kinds = torch.tensor([0, 0, 1, 1])
    start = torch.eye(2)[kinds]
    assert cycle_loss(start, torch.eye(2), 0.05, kinds).item() < 1e-6
    assert cycle_loss(start, torch.eye(2), 0.05).item() == pytest.approx(np.log(2), rel=1e-4)


def test_supervised_contrastive_by_hand() -> None:
    z = unit(5, 4)
    kinds = torch.tensor([0, 1, 0, 1, 2])  # the last is alone
    losses = []
    for i, positives in ((0, [2]), (1, [3]), (2, [0]), (3, [1])):
        others = [k for k in range(5) if k != i]
        logits = z[i] @ z[others].T / 0.2
        share = logits.log_softmax(0)
        losses.append(-sum(share[others.index(p)] for p in positives) / len(positives))
    torch.testing.assert_close(supervised_contrastive_loss(z, kinds, 0.2), torch.stack(losses).mean())
    alone = supervised_contrastive_loss(z, torch.arange(5), 0.2)
    assert alone.item() == 0


def test_supervised_contrastive_has_finite_gradients() -> None:
    z = unit(4, 3).requires_grad_()
    supervised_contrastive_loss(z, torch.tensor([0, 0, 1, 2]), 0.1).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_queue_is_info_nce() -> None:
    loss = QueueLoss(width=6, length=5, temperature=0.2)
    assert loss.style_queue.shape == (6, 5)  # as published
    anchors, positives = unit(3, 6), unit(3, 6, seed=1)
    expected = []
    for anchor, positive in zip(anchors, positives, strict=True):
        logits = torch.cat([(anchor @ positive)[None], anchor @ loss.style_queue]) / 0.2
        expected.append(-logits.log_softmax(0)[0])
    torch.testing.assert_close(loss(anchors, positives), torch.stack(expected).mean())


def test_queue_replaces_its_oldest() -> None:
    loss = QueueLoss(width=4, length=5)
    before = loss.style_queue.clone()
    first, second = unit(3, 4, seed=5), unit(3, 4, seed=6)
    loss.add(first)
    assert torch.equal(loss.style_queue[:, :3], first.T)
    assert torch.equal(loss.style_queue[:, 3:], before[:, 3:])
    loss.add(second)
    assert torch.equal(loss.style_queue, torch.cat([second[2:], first[1:], second[:2]]).T)
    loss.add(unit(9, 4, seed=7))  # more than it holds
    assert loss.place.item() == (6 + 5) % 5
