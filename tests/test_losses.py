"""Losses and calibration against numbers of the published code, and where that code breaks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import recipe
import torch

from methods.clib_fiqa.calibration import certainty, divergence
from methods.clib_fiqa.losses import TASKS, earth_movers_distance, focal_loss, score_to_distribution, task_losses
from model.clib_fiqa import expected_quality
from model.confidence import ConfidenceMLP
from model.iresnet import ArcFaceHeader
from model.prompts import AXES, JOINT_SHAPE


@pytest.fixture(scope="module")
def numbers(golden):
    with np.load(golden / "losses.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def test_score_to_distribution_and_back(numbers):
    torch.testing.assert_close(score_to_distribution(numbers["scores"]), numbers["score_to_dist"], rtol=0, atol=1e-7)
    torch.testing.assert_close(expected_quality(numbers["p"]), numbers["dist_to_score"], rtol=0, atol=1e-8)


def test_certainty_flattens_the_target(numbers):
    target = score_to_distribution(numbers["scores"], certainty(numbers["confidence"]))
    torch.testing.assert_close(target, numbers["score_to_dist_confid"], rtol=0, atol=1e-7)


def test_divergence(numbers):
    """The published function takes a softmax of both arguments, whatever they are."""
    found = divergence(numbers["p"], numbers["q"])
    torch.testing.assert_close(found, numbers["js_distance"], rtol=0, atol=1e-8)


def test_earth_movers_distance(numbers):
    found = earth_movers_distance(numbers["p"], numbers["q"])
    torch.testing.assert_close(found, numbers["emd"], rtol=0, atol=1e-8)


def test_focal_loss(numbers):
    found = focal_loss(numbers["logits"], numbers["labels"])
    torch.testing.assert_close(found, numbers["focal_gamma2"], rtol=0, atol=1e-8)


def test_calibration_mlp(numbers, golden):
    keys = json.loads((golden / "mlp_keys.json").read_text())
    mlp = ConfidenceMLP.from_tensors({k: torch.from_numpy(v) for k, v in recipe.state_dict(keys).items()})
    torch.testing.assert_close(mlp(numbers["mlp_in"]), numbers["mlp_out"], rtol=0, atol=1e-6)


def test_quality_anchor_header(numbers):
    """The header whose class-centre similarities are CR-FIQA's anchors."""
    header = ArcFaceHeader.from_tensors({"kernel": numbers["cr_kernel"]})
    ccs, nnccs = header.similarities(numbers["cr_embeddings"], numbers["cr_labels"])
    torch.testing.assert_close(ccs.flatten(), numbers["cr_ccs"].flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close(nnccs.flatten(), numbers["cr_nnccs"].flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close((ccs / nnccs).flatten(), numbers["cr_anchor"].flatten(), rtol=1e-4, atol=0)
    logits = header.logits(numbers["cr_embeddings"], numbers["cr_labels"])
    torch.testing.assert_close(logits, numbers["cr_logits"], rtol=0, atol=1e-4)


def test_equal_distributions_have_no_gradient_instead_of_nan(numbers):
    p = numbers["p"].clone().requires_grad_()
    for kind in ("rms", "sum"):
        earth_movers_distance(p, numbers["p"], kind).backward()
    assert torch.equal(p.grad, torch.zeros_like(p))


def test_focal_loss_of_a_perfect_prediction():
    """The published double softmax leaves a floor, 0.0991 of three classes and 0.0227 of two; the paper's does not."""
    three, two = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert focal_loss(three, torch.tensor([2])).item() == pytest.approx(0.0991, abs=1e-4)
    assert focal_loss(two, torch.tensor([0])).item() == pytest.approx(0.0227, abs=1e-4)
    assert focal_loss(three, torch.tensor([2]), "sample").item() == 0


def test_focal_loss_of_each_image_by_hand():
    p = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    expected = (-(0.3**2) * math.log(0.7) - 0.8**2 * math.log(0.2)) / 2
    assert focal_loss(p, torch.tensor([0, 0]), "sample").item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_survives_an_impossible_label():
    p = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = focal_loss(p, torch.tensor([1]), "sample")
    loss.backward()
    assert loss.isfinite()
    assert p.grad.isfinite().all()


def test_paper_distance_and_mapping_by_hand():
    p, q = torch.tensor([[1.0, 0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0, 1.0]])
    assert earth_movers_distance(p, q, "sum").item() == 4
    weights = [math.exp(-32 * abs(0.5 - anchor)) for anchor in (0.1, 0.3, 0.5, 0.7, 0.9)]
    expected = torch.tensor([weights]) / sum(weights)
    torch.testing.assert_close(score_to_distribution(torch.tensor([0.5]), mapping="absolute"), expected)


def test_divergence_bounds():
    """Two one-hot distributions: ln 2 apart in the paper; 0.066 in the published code (certainty 0.606, not 0.5)."""
    one, other = torch.eye(5)[:1], torch.eye(5)[1:2]
    assert divergence(one, 200 * other, "js").item() == pytest.approx(math.log(2), abs=1e-5)
    assert divergence(one, 200 * one, "js").item() == pytest.approx(0, abs=1e-6)
    published = divergence(one, other)
    assert published.item() == pytest.approx(0.066, abs=1e-3)
    assert certainty(published).item() == pytest.approx(0.606, abs=1e-3)
    assert divergence(one, 1e4 * other).isfinite()


def test_task_losses_are_in_the_order_of_the_tasks():
    """Pushing one factor's mass towards its label lowers that factor's loss and no other."""
    shape = dict(zip(AXES, JOINT_SHAPE, strict=True))
    target = score_to_distribution(torch.tensor([0.5, 0.9]))
    labels = torch.tensor([[0, 1, 0, 2, 1]] * 2)  # blur, occlusion, illumination, pose, expression
    uniform = torch.full((2, 360), 1 / 360)
    before = task_losses(uniform, target, labels)
    for task, label in zip(TASKS[1:], labels[0].tolist(), strict=True):
        axis = 1 + list(shape).index(task)
        boosted = uniform.reshape(2, *shape.values()).clone()
        boosted.select(axis, label).mul_(3)
        after = task_losses((boosted / boosted[0].sum()).reshape(2, 360), target, labels)
        changed = [name for name, a, b in zip(TASKS, before, after, strict=True) if not torch.isclose(a, b)]
        assert changed == [task]
        assert after[TASKS.index(task)] < before[TASKS.index(task)]
