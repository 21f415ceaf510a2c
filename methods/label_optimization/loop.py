"""The training of the regressor from one validation to the next (Babnik, Damer, Štruc, IWBF 2023)."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from methods.label_optimization.data import ScoredFaces
from methods.label_optimization.losses import quality_loss
from methods.label_optimization.run import RegressorRun
from training import processes
from training.batches import network_input, on_device
from training.console import counter
from training.images import Batch
from training.means import StepValues
from training.step import backward, require_finite, step, train_mode

ADVICE = "--precision fp32, or begin again with a lower --lr"


def train_epoch_part(run: RegressorRun, faces: ScoredFaces) -> dict[str, Any]:
    """Train until the next validation of the epoch, validate, and return the line of the log.

    Raises TrainingError when the loss or a gradient is not finite.
    """
    config, began, first = run.config, time.perf_counter(), run.step
    steps = faces.train.steps(config.batch_size)
    epoch, done = divmod(run.step, steps)
    stop = min(done + max(1, steps // config.validations), steps)
    train_mode(run.model, config.batch_norm)
    values = StepValues(run.device)
    batches = faces.train.batches(config.batch_size, seed=(config.seed, epoch), flips=False, done=done, stop=stop)
    with counter(f"epoch {epoch + 1}/{config.epochs}", steps, "step", done) as bar:
        for batch in on_device(batches, run.device):
            values.add(train_step(run, faces, batch), len(batch.images))
            run.step += 1
            bar.update()
            if values.due or run.step == first + stop - done:
                for number, (loss, norm) in values.read():
                    require_finite(["quality"], [loss], norm, run.scaler, f"step {first + number}", ADVICE)
    return {
        "epoch": run.step / steps,
        "step": run.step,
        "loss": values.means_over_processes()[0].item(),
        "validation": validate(run, faces),
        "seconds": round(time.perf_counter() - began, 1),
    }


def train_step(run: RegressorRun, faces: ScoredFaces, batch: Batch) -> Tensor:
    """One step. Returns (2,) on the device: the loss of this process's share, and the norm of the gradient."""
    loss = quality_loss(predict(run, batch.images), faces.labels[processes.share(batch.rows)])
    part = len(batch.images) / len(batch.rows)  # so that the sum over the processes is the mean over the batch
    backward(loss * part, [run.optimizer], run.scaler, run.sums)
    norm = step(run.optimizer, run.scaler, run.config.clip_norm, together=True)
    run.scaler.update()
    return torch.stack([loss.detach(), norm])


def predict(run: RegressorRun, images: Tensor) -> Tensor:
    """RGB uint8 (B, S, S, 3) -> float32 quality (B,)."""
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        _, quality = run.model(network_input(images, run.model.preprocessing))
    return quality[:, 0].float()


@torch.no_grad()
def validate(run: RegressorRun, faces: ScoredFaces) -> float:
    """The mean loss over the validation images, of which each process predicts its share."""
    run.model.eval()
    values = StepValues(run.device)
    for rows, images in faces.validation.in_order(run.config.batch_size):
        loss = torch.zeros(1, device=run.device)
        if len(images):  # the last batch may be too small for a share for each process
            labels = faces.labels[processes.share(rows).to(run.device)]
            loss = quality_loss(predict(run, images.to(run.device)), labels)[None]
        values.add(loss, len(images))
    values.read()
    return values.means_over_processes().item()


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    return (
        f"epoch {record['epoch']:.2f} (step {record['step']}): loss {record['loss']:.4f}, "
        f"validation {record['validation']:.4f}, {record['seconds']} s"
    )
