"""An epoch of eDifFIQA's training, and its validation."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from methods.ediffiqa.config import Config
from methods.ediffiqa.data import TeacherItems
from methods.ediffiqa.losses import centre_distance, consistency_loss, optimised_labels, quality_loss, total_loss
from methods.ediffiqa.run import EDifFiqaRun
from training import processes
from training.images import Batch
from training.step import TrainingError


def train_epoch(run: EDifFiqaRun, items: TeacherItems) -> dict[str, Any]:
    """Train the next epoch, validate, and return its line of the log.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    train_mode(run.model, config.batch_norm)
    steps = items.train.steps(config.batch_size)
    sums = torch.zeros(3, dtype=torch.float64)  # of the two losses over the images, and how many these are
    batches = items.train.batches(config.batch_size, seed=(config.seed, run.epoch), flips=False)
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    title = f"epoch {run.epoch + 1}/{config.epochs}"
    progress = tqdm(batches, title, steps, unit="step", leave=False, disable=hidden, file=sys.stderr)
    for index, batch in enumerate(progress):
        set_learning_rates(run, run.epoch + index / steps)
        losses, norm = train_step(run, items, batch)
        _require_finite(run, index + 1, losses.tolist(), norm)
        sums += torch.tensor([*losses.tolist(), 1.0], dtype=torch.float64) * len(batch.images)
        run.step += 1
    run.epoch += 1
    consistency, quality, seen = means_over_processes(run, sums)
    seconds = time.perf_counter() - began
    return {
        "epoch": run.epoch,
        "step": run.step,
        "lr": run.optimizer.param_groups[1]["lr"],
        "losses": {"consistency": consistency, "quality": quality},
        "total": config.theta * consistency + (1 - config.theta) * quality,
        "validation": validate(run, items),
        "images_per_second": round(seen / seconds, 1),
        "seconds": round(seconds, 1),
    }


def train_step(run: EDifFiqaRun, items: TeacherItems, batch: Batch) -> tuple[Tensor, float]:
    """One step: consistency and quality loss of this process's share (2,), and the length of the gradient."""
    config, rows = run.config, processes.share(batch.rows)
    labels, teacher, centres = (values.to(run.device) for values in items.targets(rows))
    run.optimizer.zero_grad()
    features, predictions = predict(run, batch.images)
    labels = optimised_labels(labels, centre_distance(features, centres), config.epsilon)
    consistency, quality = consistency_loss(features, teacher), quality_loss(predictions, labels)
    part = len(batch.images) / len(batch.rows)  # the sum over the processes is the mean over the batch
    run.scaler.scale(total_loss(consistency, quality, config.theta) * part).backward()
    trained = [weight for weight in run.model.parameters() if weight.requires_grad]
    processes.sum_gradients(trained)
    run.scaler.unscale_(run.optimizer)
    norm = clip_grad_norm_(trained, config.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return torch.stack([consistency, quality]).detach().cpu(), norm.item()


def predict(run: EDifFiqaRun, images: Tensor) -> tuple[Tensor, Tensor]:
    """RGB uint8 (B, S, S, 3) -> float32 features (B, D) and quality (B,)."""
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        features, quality = run.model(run.model.preprocessing.normalise(images.to(run.device)))
    return features.float(), quality[:, 0].float()


@torch.no_grad()
def validate(run: EDifFiqaRun, items: TeacherItems) -> dict[str, float]:
    """Mean losses over the validation images, against the labels as they are, not optimised."""
    run.model.eval()
    share = processes.share(items.validation.usable)
    sums = torch.zeros(3, dtype=torch.float64)
    images = replace(items.validation, usable=share)
    for rows, pictures in images.in_order(run.config.batch_size) if len(share) else ():
        labels, teacher, _ = (values.to(run.device) for values in items.targets(rows))
        features, predictions = predict(run, pictures)
        losses = consistency_loss(features, teacher).item(), quality_loss(predictions, labels).item(), 1.0
        sums += torch.tensor(losses, dtype=torch.float64) * len(rows)
    consistency, quality, _ = means_over_processes(run, sums)
    theta = run.config.theta
    return {"consistency": consistency, "quality": quality, "total": theta * consistency + (1 - theta) * quality}


def means_over_processes(run: EDifFiqaRun, sums: Tensor) -> tuple[float, float, float]:
    """Sums of two losses over images and the number of these (3,), of this process -> the means over all processes'
    images, and how many these are."""
    first, second, images = processes.gather(sums[None].to(run.device), processes.count()).sum(dim=0).tolist()
    return first / images, second / images, images


def train_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode; batch norms that the rule (`--batch-norm`) excludes keep their running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            module.train(batch_norm == "published" or (batch_norm == "trained" and trains))


def set_learning_rates(run: EDifFiqaRun, epoch: float) -> None:
    """Give both groups their rate at `epoch` finished epochs, a fraction in the middle of one."""
    factor = rate_factor(run.config, epoch)
    for group, rate in zip(run.optimizer.param_groups, (run.config.mlp_lr, run.config.lr), strict=True):
        group["lr"] = rate * factor


def rate_factor(config: Config, epoch: float) -> float:
    """The share of the highest learning rate."""
    return (1 + math.cos(math.pi * epoch / config.epochs)) / 2 if config.schedule == "cosine" else 1.0


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    parts = [
        f"{title} {values['consistency']:.4f} + {values['quality']:.4f}"
        for title, values in (("training", record["losses"]), ("validation", record["validation"]))
    ]
    return f"epoch {record['epoch']}: consistency + quality: {', '.join(parts)}; {record['images_per_second']} images/s"


def _require_finite(run: EDifFiqaRun, step: int, losses: list[float], norm: float) -> None:
    overflow = run.scaler.is_enabled()  # an infinite gradient in fp16 makes the scaler skip the step, and go on
    if all(map(math.isfinite, losses)) and (math.isfinite(norm) or overflow):
        return
    raise TrainingError(
        f"the training has diverged in epoch {run.epoch + 1}, step {step}: losses {losses}, gradient {norm:.4g}. The "
        "best network so far is kept: try --resume with a lower --lr and --mlp-lr, or --precision fp32"
    )
