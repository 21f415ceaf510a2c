"""The two stages of CLIB-FIQA's training (Ou et al., CVPR 2024) and the calibration of confidence between them.

Stage 1 fits the joint distribution of an image to its quality anchor and its factor labels, and a small MLP to read
the quality off the factors alone. Calibration then measures how far the two predictions diverge: an anchor that the
factors contradict is less certain. Stage 2 fits to targets that are flatter where the anchor is less certain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from methods.clib_fiqa.calibration import certainty, divergence
from methods.clib_fiqa.data import LabelledFaces
from methods.clib_fiqa.files import save_state
from methods.clib_fiqa.frozen import tower_of
from methods.clib_fiqa.losses import TASKS, earth_movers_distance, score_to_distribution, task_losses
from methods.clib_fiqa.run import ClibFiqaRun
from methods.clib_fiqa.weighting import loss_weights
from model.clib_fiqa import ClibFiqa, factor_joint, marginals
from model.multi_level import MultiLevelTower
from training import processes
from training.batches import mirrored, network_input, on_device
from training.console import progress
from training.images import Batch
from training.means import StepValues
from training.schedule import cosine_wave, milestones
from training.state import require_same_steps
from training.step import backward, require_finite, seed_dropout, step

ADVICE = "a lower --lr, or --precision fp32, and look for odd values of quality in the label table"


def train_epoch(run: ClibFiqaRun, faces: LabelledFaces) -> dict[str, Any]:
    """Train the next epoch and return its line of the log. It is of stage 1 until `calibrate` was called, then of 2.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    lr, announced_lr = _set_learning_rates(run)
    weights = loss_weights(run.history, len(TASKS), config.weighting)  # (6,)
    stage = 1 if run.divergences is None else 2
    names = (*TASKS, "mlp")[: 7 if stage == 1 else 6]  # in stage 2 the MLP is frozen
    with_mlp = torch.cat([weights[:1], config.factor_weight * weights[1:], torch.ones(1)])
    loss_factors = with_mlp[: len(names)].to(run.device)
    run.model.train()
    images, values = faces.images, StepValues(run.device, run.past)
    steps, done = images.steps(config.batch_size, config.batches), len(values.rows)
    if done:
        require_same_steps(run.steps, steps)
    batches = images.batches(config.batch_size, (config.seed, run.epoch), sizes=config.batches, done=done)
    bar = progress(on_device(batches, run.device), _title(run), steps, "step", done)
    for index, batch in enumerate(bar, done + 1):
        seed_dropout(config.seed, run.epoch, index)
        losses = batch_losses(run, faces, batch)  # (7,) or (6,), the same in all processes
        norm = update(run, losses @ loss_factors)
        values.add(torch.cat([losses.detach(), norm[None]]), 1 / processes.count())  # the same in all processes
        saving = config.save_every_steps > 0 and index % config.save_every_steps == 0 and index < steps
        if values.due or saving or index == steps:
            for number, row in values.read():
                where = f"epoch {run.epoch + 1}, step {number}, at learning rate {lr:.3g}"
                require_finite(names, row[:-1], row[-1], run.scaler, where, ADVICE)
        if saving:
            run.past, run.steps = values.over_processes(), steps
            if processes.rank() == 0:
                save_state(run)
    run.past, run.steps = None, 0
    if config.freeze != "text-tower":
        run.model.refresh_text_features()
    run.epoch += 1
    means = values.means()[:-1].tolist()
    run.history.append(means[: len(TASKS)])
    return {
        "epoch": run.epoch,
        "stage": stage,
        "lr": announced_lr,
        "lr_used": lr,
        "losses": dict(zip_longest((*TASKS, "mlp"), means)),
        "total": sum(means[: len(TASKS)]),
        "weights": dict(zip(TASKS, weights.tolist(), strict=True)),
        "seconds": round(time.perf_counter() - began, 3),
    }


def batch_losses(run: ClibFiqaRun, faces: LabelledFaces, batch: Batch) -> Tensor:
    """The losses of a batch: (6,) in the order of `TASKS`; in stage 1 (7,), the MLP's the last."""
    config = run.config
    rho = None if run.divergences is None else certainty(run.divergences[batch.rows])  # (B,)
    target = score_to_distribution(faces.quality[batch.rows], rho, config.soft_mapping)  # (B, 5)
    labels = faces.factors[batch.rows]  # (B, 5)
    joint = predict(run, batch)  # (B, 360): the focal loss is no mean over images, so it needs the whole batch
    losses = task_losses(joint, target, labels, config.quality_weight, config.emd, config.focal)
    if rho is not None:
        return losses
    # Detached: the MLP's loss trains the MLP only.
    mlp_loss = earth_movers_distance(run.mlp(factor_joint(joint).detach()), target, config.emd)
    return torch.cat([losses, mlp_loss[None]])


def predict(run: ClibFiqaRun, batch: Batch) -> Tensor:
    """The joint distribution of a batch (B, 360), float32."""
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        text_features = None if run.config.freeze == "text-tower" else run.model.encode_prompts()
        logits = run.model.logits_of(image_features(run, batch), text_features)
    return processes.gather(logits.softmax(dim=1), len(batch.rows))


def image_features(run: ClibFiqaRun, batch: Batch) -> Tensor:
    """The image tower's features of this process's share of a batch (b, D)."""
    if run.config.freeze == "trunk":  # the batch holds features (b, 2, L) of each image and its mirror image
        levels = batch.images[torch.arange(len(batch.flip), device=batch.flip.device), batch.flip.long()]
        return tower_of(run.model).read(levels)
    images = mirrored(batch.images, batch.flip)
    return run.model.clip.encode_image(network_input(images, run.model.preprocessing))


def update(run: ClibFiqaRun, loss: Tensor) -> Tensor:
    """One optimisation step of both networks; the larger norm of their gradients before clipping, a scalar on the
    device."""
    backward(loss, [run.optimizer], run.scaler, run.sums)
    norm = step(run.optimizer, run.scaler, run.config.clip_norm)
    run.scaler.update()
    return norm


@torch.no_grad()
def calibrate(run: ClibFiqaRun, faces: LabelledFaces) -> dict[str, float]:
    """Begin stage 2: compute the divergence of each usable row, and return their summary for the log.

    As published the network stays in training mode, so each image is seen with the statistics of its batch, flipped
    or not, and the running statistics move; `calibrate_in="eval"` looks at the images as scoring will. Dropout, which
    the published network does not have, is off in both.
    """
    config, training = run.config, run.config.calibrate_in == "train"
    run.model.train(training)
    divergences = torch.full((len(faces.images.paths),), math.nan, device=run.device)
    batches = faces.images.batches(config.batch_size, (config.seed, run.epoch, 1), flips=training)
    steps = faces.images.steps(config.batch_size)
    with without_dropout(run.model):
        for batch in progress(on_device(batches, run.device), _title(run), steps, "step"):
            joint = predict(run, batch)  # (B, 360)
            quality, implied = marginals(joint)["quality"], run.mlp(factor_joint(joint))  # (B, 5), (B, 5)
            divergences[batch.rows] = divergence(quality, implied, config.confidence)
    run.divergences = divergences
    found = divergences[faces.images.usable.to(run.device)]
    rho = certainty(found)
    return {
        f"{name}_{statistic}": getattr(values, statistic)().item()
        for name, values in (("divergence", found), ("certainty", rho))
        for statistic in ("mean", "min", "max")
    }


@contextmanager
def without_dropout(model: ClibFiqa) -> Iterator[None]:
    """Dropout of the image tower is off in the block, in training mode too."""
    tower = model.clip.visual
    if not isinstance(tower, MultiLevelTower):  # the others have none
        yield
        return
    dropout, tower.dropout = tower.dropout, 0.0
    try:
        yield
    finally:
        tower.dropout = dropout


def _set_learning_rates(run: ClibFiqaRun) -> tuple[float, float]:
    """(used, announced) rate of the model in the coming epoch; the optimiser gets it, and the MLP's."""
    config = run.config
    used, announced = cosine_wave(run.epoch, config.lr, config.lr_period or config.epochs)
    mlp_lr = milestones(run.epoch, config.mlp_lr or 100 * config.lr, config.mlp_milestones)
    for group, rate in zip(run.optimizer.param_groups, (used, mlp_lr), strict=True):
        group["lr"] = rate
    return used, announced


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items() if value is not None)
    return "epoch {epoch}: lr {lr_used:.3g}, total {total:.4f} ({}), {seconds:.1f} s".format(losses, **record)


def _title(run: ClibFiqaRun) -> str:
    return f"epoch {run.epoch + 1}/{run.config.epochs}"
