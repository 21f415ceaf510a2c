"""CR-FIQA's losses against the published code, and the lean header against the plain formulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.cr_fiqa.header import arcface_loss
from methods.cr_fiqa.losses import quality_anchor, quality_loss, teacher_loss
from methods.cr_fiqa.sampling import sample_classes, update_centres
from methods.cr_fiqa.variance import teaches_quality, update_variance
from model.iresnet import ArcFaceHeader


@pytest.fixture(scope="module")
def published(golden: Path):
    with np.load(golden / "losses.npz") as values:
        return {name[3:]: torch.from_numpy(values[name]) for name in values.files if name.startswith("cr_")}


def test_published_loss_and_anchor(published):
    loss, ccs, nnccs = arcface_loss(published["embeddings"], published["kernel"], published["labels"])
    torch.testing.assert_close(ccs[:, None], published["ccs"])
    torch.testing.assert_close(nnccs.clamp_min(-1e-12)[:, None], published["nnccs"])
    expected = F.cross_entropy(published["logits"], published["labels"], reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    ratio = quality_anchor(ccs, nnccs, "ratio")
    ordinary = nnccs > 1e-3
    assert ordinary.any()
    torch.testing.assert_close(ratio[ordinary], published["anchor"].flatten()[ordinary], rtol=1e-4, atol=1e-5)


def test_anchors_are_bounded_where_the_published_ratio_explodes():
    ccs, nnccs = torch.tensor([0.5, 0.5, -0.2, 1.0]), torch.tensor([0.25, -0.3, 0.0, -1.0])
    torch.testing.assert_close(quality_anchor(ccs, nnccs)[:3], torch.tensor([0.4, 0.5 / 0.7, -0.2]))
    torch.testing.assert_close(quality_anchor(ccs, nnccs, "ratio"), torch.tensor([2.0, 500.0, -200.0, 1000.0]))
    assert quality_anchor(ccs, nnccs).isfinite().all()


def test_quality_loss_is_quadratic_then_linear_and_leaves_the_anchor_alone():
    predicted = torch.tensor([0.3, 2.0], requires_grad=True)
    anchors = torch.tensor([0.0, 0.0], requires_grad=True)
    loss = quality_loss(predicted, anchors)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.3**2 / 0.5, 2.0 - 0.25]))
    loss.sum().backward()
    assert anchors.grad is None


@pytest.mark.parametrize("classes", [3, 20_000])  # below and above a block
def test_gradients_are_those_of_the_plain_formulation(classes):
    torch.manual_seed(0)
    header = ArcFaceHeader(16, classes)
    embeddings = torch.randn(6, 16, requires_grad=True)
    labels, weights = torch.randint(0, classes, (6,)), torch.rand(6)
    (F.cross_entropy(header.logits(embeddings, labels), labels, reduction="none") @ weights).backward()
    expected = [embeddings.grad.clone(), header.kernel.grad.clone()]
    embeddings.grad = header.kernel.grad = None
    loss, ccs, nnccs = arcface_loss(embeddings, header.kernel, labels)
    (loss @ weights).backward()
    torch.testing.assert_close(embeddings.grad, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(header.kernel.grad, expected[1], rtol=1e-4, atol=1e-5)
    assert header.kernel.grad.t().is_contiguous()  # so that processes add it up without a copy
    for found, similarity in zip((ccs, nnccs), header.similarities(embeddings, labels), strict=True):
        torch.testing.assert_close(found, similarity[:, 0])


def test_a_second_backward_pass_is_refused():
    embeddings, kernel = torch.randn(2, 4, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = arcface_loss(embeddings, kernel, torch.tensor([0, 2]))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward pass"):
        loss.backward()


def test_gradient_is_finite_on_a_centre():
    embeddings, kernel = torch.eye(4, requires_grad=True), torch.eye(4, requires_grad=True)
    arcface_loss(embeddings, kernel, torch.arange(4))[0].sum().backward()
    assert embeddings.grad.isfinite().all()
    assert kernel.grad.isfinite().all()


def test_teacher_loss_sees_directions_only():
    targets = F.normalize(torch.randn(3, 8), dim=1)
    torch.testing.assert_close(teacher_loss(targets * 7, targets), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(teacher_loss(-targets, targets), torch.full((3,), 2.0))


def test_sampled_classes_hold_those_of_the_batch():
    labels = torch.tensor([5, 900, 5, 17])
    generator = torch.Generator().manual_seed(0)
    rows = sample_classes(labels, 1000, 0.1, generator)
    assert len(rows) == 100
    assert torch.equal(rows, rows.unique())
    assert set(labels.tolist()) <= set(rows.tolist())
    assert torch.equal(rows[torch.searchsorted(rows, labels)], labels)
    assert not torch.equal(rows, sample_classes(labels, 1000, 0.1, generator))
    assert sample_classes(labels, 1000, 0.001, generator).tolist() == [5, 17, 900]  # the batch's, whatever the rate
    draws = [torch.bincount(sample_classes(labels, 1000, 0.1, generator), minlength=1000) for _ in range(300)]
    draws = torch.stack(draws)
    assert draws.sum(dim=0).min() > 0  # no class is forgotten
    assert draws[:, labels].all()


def test_sampled_update_is_sgd_on_those_rows():
    torch.manual_seed(0)
    centres, momenta = torch.randn(6, 4), torch.zeros(6, 4)
    plain = torch.nn.Parameter(centres[[1, 4]].clone())
    optimizer = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=5e-4)
    before = centres.clone()
    for _ in range(3):
        plain.grad = torch.randn(2, 4)
        optimizer.step()
        update_centres(centres, momenta, torch.tensor([1, 4]), plain.grad, 0.1, 0.9, 5e-4)
    torch.testing.assert_close(centres[[1, 4]], plain.detach())
    others = [0, 2, 3, 5]
    assert torch.equal(centres[others], before[others])
    assert not momenta[others].any()


def test_variance_is_a_moving_average_of_each_class():
    variance = torch.full((3,), torch.nan)
    update_variance(variance, torch.tensor([0, 2, 0]), torch.tensor([0.5, 0.9, 0.7]))
    torch.testing.assert_close(variance, torch.tensor([0.8, torch.nan, 0.2]), equal_nan=True)
    update_variance(variance, torch.tensor([2, 1]), torch.tensor([0.8, 0.5]))
    torch.testing.assert_close(variance, torch.tensor([0.8, 1.0, 0.22]))
    assert teaches_quality(variance, torch.tensor([0, 1, 2, 2]), 0.5).tolist() == [1, 1, 0, 0]
    assert teaches_quality(variance, torch.tensor([0, 1, 2]), 0.1).tolist() == [1, 1, 1]
