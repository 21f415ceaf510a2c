"""The training of the regressor from one validation to the next (Babnik, Damer, Štruc, IWBF 2023)."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from methods.label_optimization.data import ScoredFaces
from methods.label_optimization.losses import quality_loss
from methods.label_optimization.run import RegressorRun
from training import processes
from training.images import Batch
from training.step import TrainingError


def train_epoch_part(run: RegressorRun, faces: ScoredFaces) -> dict[str, Any]:
    """Train until the next validation of the epoch, validate, and return the line of the log.

    Raises TrainingError when the loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    steps = faces.train.steps(config.batch_size)
    epoch, done = divmod(run.step, steps)
    stop = min(done + max(1, steps // config.validations), steps)
    train_mode(run)
    total, seen = 0.0, 0
    batches = faces.train.batches(config.batch_size, seed=(config.seed, epoch), flips=False)
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    title = f"epoch {epoch + 1}/{config.epochs}"
    progress = tqdm(total=steps, initial=done, desc=title, unit="step", leave=False, disable=hidden, file=sys.stderr)
    with progress:
        for batch in islice(batches, done, stop):
            loss, norm = train_step(run, faces, batch)
            _require_finite(run, loss, norm)
            total, seen = total + loss * len(batch.images), seen + len(batch.images)
            run.step += 1
            progress.update()
    mean = processes.gather(torch.tensor([[total, seen]]), processes.count()).sum(dim=0)
    return {
        "epoch": run.step / steps,
        "step": run.step,
        "loss": (mean[0] / mean[1]).item(),
        "validation": validate(run, faces),
        "seconds": round(time.perf_counter() - began, 1),
    }


def train_step(run: RegressorRun, faces: ScoredFaces, batch: Batch) -> tuple[float, float]:
    """One step: the loss of this process's share, and the length of the gradient."""
    labels = faces.labels[processes.share(batch.rows)].to(run.device)
    run.optimizer.zero_grad()
    loss = quality_loss(predict(run, batch.images), labels)
    part = len(batch.images) / len(batch.rows)  # the sum over the processes is the mean over the batch
    run.scaler.scale(loss * part).backward()
    trained = [weight for group in run.optimizer.param_groups for weight in group["params"]]
    processes.sum_gradients(trained)
    run.scaler.unscale_(run.optimizer)
    norm = clip_grad_norm_(trained, run.config.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss.item(), norm.item()


def predict(run: RegressorRun, images: Tensor) -> Tensor:
    """RGB uint8 (B, S, S, 3) -> float32 quality (B,)."""
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        _, quality = run.model(run.model.preprocessing.normalise(images.to(run.device)))
    return quality[:, 0].float()


@torch.no_grad()
def validate(run: RegressorRun, faces: ScoredFaces) -> float:
    """The mean loss over the validation images, of which each process predicts its share."""
    run.model.eval()
    share = processes.share(faces.validation.usable)
    total = torch.zeros(2)
    for rows, images in replace(faces.validation, usable=share).in_order(run.config.batch_size) if len(share) else ():
        loss = quality_loss(predict(run, images), faces.labels[rows].to(run.device))
        total += torch.tensor([loss.item() * len(rows), len(rows)])
    total = processes.gather(total[None], processes.count()).sum(dim=0)
    return (total[0] / total[1]).item()


def train_mode(run: RegressorRun) -> None:
    """Training mode; with `--batch-norm frozen` the batch norms keep their running statistics."""
    run.model.train()
    if run.config.batch_norm == "frozen":
        for module in run.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    return (
        f"epoch {record['epoch']:.2f} (step {record['step']}): loss {record['loss']:.4f}, "
        f"validation {record['validation']:.4f}, {record['seconds']} s"
    )


def _require_finite(run: RegressorRun, loss: float, norm: float) -> None:
    overflow = run.scaler.is_enabled()  # an infinite gradient in fp16 makes the scaler skip the step, and go on
    if math.isfinite(loss) and (math.isfinite(norm) or overflow):
        return
    raise TrainingError(
        f"the training has diverged in step {run.step + 1}: loss {loss:.4g}, gradient {norm:.4g}. The best network so "
        "far is kept: try --resume with --precision fp32, or begin again with a lower --lr"
    )
