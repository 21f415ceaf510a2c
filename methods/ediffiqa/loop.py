"""An epoch of eDifFIQA's training, and its validation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from methods.ediffiqa.config import Config
from methods.ediffiqa.data import TeacherBatch, TeacherItems
from methods.ediffiqa.losses import centre_distance, consistency_loss, optimised_labels, quality_loss, total_loss
from methods.ediffiqa.run import EDifFiqaRun
from training.batches import network_input, on_device
from training.console import progress
from training.means import StepValues
from training.schedule import half_cosine
from training.step import backward, require_finite, step, train_mode

LOSSES = ("consistency", "quality")
ADVICE = "a lower --lr and --mlp-lr, or --precision fp32"


def train_epoch(run: EDifFiqaRun, items: TeacherItems) -> dict[str, Any]:
    """Train the next epoch, validate, and return its line of the log.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    train_mode(run.model, config.batch_norm_rule())
    values, steps = StepValues(run.device), items.train.steps(config.batch_size)
    batches = on_device(items.batches(config.batch_size, (config.seed, run.epoch)), run.device)
    title = f"epoch {run.epoch + 1}/{config.epochs}"
    for index, batch in enumerate(progress(batches, title, steps, "step"), 1):
        set_learning_rates(run, run.epoch + (index - 1) / steps)
        values.add(train_step(run, batch), len(batch.images))
        run.step += 1
        if values.due or index == steps:
            for number, row in values.read():
                where = f"epoch {run.epoch + 1}, step {number}"
                require_finite(LOSSES, row[:2], row[-1], run.scaler, where, ADVICE)
    run.epoch += 1
    consistency, quality, _ = values.means_over_processes().tolist()
    seconds = time.perf_counter() - began
    return {
        "epoch": run.epoch,
        "step": run.step,
        "lr": run.optimizer.param_groups[1]["lr"],
        "losses": {"consistency": consistency, "quality": quality},
        "total": config.theta * consistency + (1 - config.theta) * quality,
        "validation": validate(run, items),
        "images_per_second": round(len(items.train.usable) / seconds, 1),
        "seconds": round(seconds, 1),
    }


def train_step(run: EDifFiqaRun, batch: TeacherBatch) -> Tensor:
    """One step. Returns (3,) on the device: the consistency and the quality loss, means over this process's share, and
    the norm of the gradient."""
    config = run.config
    features, predictions = predict(run, batch.images)
    labels = optimised_labels(batch.labels, centre_distance(features, batch.centres), config.epsilon)
    consistency, quality = consistency_loss(features, batch.teacher), quality_loss(predictions, labels)
    part = len(batch.images) / batch.total  # so that the sum over the processes is the mean over the batch
    backward(total_loss(consistency, quality, config.theta) * part, [run.optimizer], run.scaler, run.sums)
    norm = step(run.optimizer, run.scaler, config.clip_norm, together=True)
    run.scaler.update()
    return torch.stack([consistency, quality, norm]).detach()


def predict(run: EDifFiqaRun, images: Tensor) -> tuple[Tensor, Tensor]:
    """RGB uint8 (B, S, S, 3) -> float32 features (B, D) and quality (B,)."""
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        features, quality = run.model(network_input(images, run.model.preprocessing))
    return features.float(), quality[:, 0].float()


@torch.no_grad()
def validate(run: EDifFiqaRun, items: TeacherItems) -> dict[str, float]:
    """Mean losses over the validation images, against the labels as they are, not optimised."""
    run.model.eval()
    values = StepValues(run.device)
    for batch in on_device(items.validation_batches(run.config.batch_size), run.device):
        losses = torch.zeros(2, device=run.device)
        if len(batch.images):  # the last batch may be too small for a share for each process
            features, predictions = predict(run, batch.images)
            losses = torch.stack([consistency_loss(features, batch.teacher), quality_loss(predictions, batch.labels)])
        values.add(losses, len(batch.images))
    values.read()
    consistency, quality = values.means_over_processes().tolist()
    theta = run.config.theta
    return {"consistency": consistency, "quality": quality, "total": theta * consistency + (1 - theta) * quality}


def set_learning_rates(run: EDifFiqaRun, epoch: float) -> None:
    """Give both groups their rate at `epoch` finished epochs, a fraction in the middle of one."""
    factor = rate_factor(run.config, epoch)
    for group, rate in zip(run.optimizer.param_groups, (run.config.mlp_lr, run.config.lr), strict=True):
        group["lr"] = rate * factor


def rate_factor(config: Config, epoch: float) -> float:
    """The share of the highest learning rate."""
    return half_cosine(1.0, epoch / config.epochs) if config.schedule == "cosine" else 1.0


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    parts = [
        f"{title} {values['consistency']:.4f} + {values['quality']:.4f}"
        for title, values in (("training", record["losses"]), ("validation", record["validation"]))
    ]
    return f"epoch {record['epoch']}: consistency + quality: {', '.join(parts)}; {record['images_per_second']} images/s"
