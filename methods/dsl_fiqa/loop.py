"""An epoch of DSL-FIQA's quality training: Charbonnier loss on opinion scores, the degradation encoder frozen."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.dsl_fiqa.config import QualityConfig
from methods.dsl_fiqa.data import Batch, RatedPictures, score_pictures
from methods.dsl_fiqa.losses import charbonnier_loss
from model.dsl_fiqa import DslFiqa
from model.statistics import correlation, rank_correlation
from training import processes
from training.batches import on_device
from training.console import progress
from training.images import mixed_seed
from training.means import StepValues
from training.processes import GradientSums
from training.schedule import half_cosine
from training.step import TrainingError, backward, require_finite, step

ADVICE = "--precision fp32, or begin anew with a lower --lr or a --clip-norm"


@dataclass
class QualityRun:
    """The network, its optimiser, and all else that later epochs depend on."""

    config: QualityConfig
    device: torch.device
    dtype: torch.dtype  # of the network's arithmetic; weights, loss and optimiser are fp32 always
    network: DslFiqa
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: GradientSums  # of the gradients over the processes
    epoch: int = 0  # epochs finished
    step: int = 0  # steps taken
    best: float = -math.inf  # SRCC on the validation set


def trained_parts(network: DslFiqa) -> dict[str, nn.Module]:
    """All but the frozen encoder."""
    return {name: part for name, part in network.named_children() if name != "encoder"}


def freeze_encoder(network: DslFiqa) -> None:
    """The degradation encoder keeps its weights, and its batch statistics too: it is in eval mode always."""
    assert network.encoder is not None, "a training has its encoder"
    network.encoder.requires_grad_(False).eval()


def train_epoch(run: QualityRun, pictures: RatedPictures, opinions: Tensor) -> dict[str, Any]:
    """Train the next epoch on scores (N,) and return its line of the log. Raises TrainingError when it diverges."""
    config, began = run.config, time.perf_counter()
    torch.manual_seed(mixed_seed((config.seed, run.epoch, processes.rank())))  # of the dropout
    run.network.train()
    freeze_encoder(run.network)
    values, steps, lr = StepValues(run.device), pictures.steps(config.batch_size), 0.0
    batches = pictures.epoch(config.batch_size, (config.seed, run.epoch), config.flip)
    title = f"epoch {run.epoch + 1}/{config.epochs}"
    for index, batch in enumerate(progress(on_device(batches, run.device), title, steps, "step"), 1):
        lr = learning_rate(config, run.epoch, run.step)
        run.optimizer.param_groups[0]["lr"] = lr
        values.add(train_step(run, batch, opinions), len(batch.crops))
        run.step += 1
        if values.due or index == steps:
            for number, (loss, norm) in values.read():
                where = f"epoch {run.epoch + 1} (step {number})"
                require_finite(["Charbonnier"], [loss], norm, run.scaler, where, ADVICE)
    run.epoch += 1
    rate = round(len(pictures.usable) / (time.perf_counter() - began), 1)
    loss, _ = values.means_over_processes().tolist()
    return {"epoch": run.epoch, "step": run.step, "lr": lr, "loss": loss, "images_per_second": rate}


def train_step(run: QualityRun, batch: Batch, opinions: Tensor) -> Tensor:
    """One step. Returns (2,) on the device: the mean loss of this process's share, and the norm of the gradient."""
    images = run.network.preprocessing.normalise(batch.crops)
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32), attention(run):
        predicted = run.network(images, batch.landmarks)
    targets = opinions[processes.share(batch.rows)]
    loss = charbonnier_loss(predicted.float(), targets, run.config.epsilon)
    part = len(batch.crops) / len(batch.rows)  # so that the sum over the processes is the mean over the batch
    backward(loss * part, [run.optimizer], run.scaler, run.sums)
    norm = step(run.optimizer, run.scaler, run.config.clip_norm or math.inf)
    run.scaler.update()
    return torch.stack([loss.detach(), norm])


def attention(run: QualityRun) -> AbstractContextManager[Any]:
    """Attention as plain products in bf16 on a CPU, where the fused operation's backward pass is slow."""
    plain = run.device.type == "cpu" and run.dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def learning_rate(config: QualityConfig, epoch: int, step: int) -> float:
    """Half a cosine from `lr` to 0 in `period`, and back, counted in epochs or in steps from 0."""
    done = step if config.schedule == "batch" else epoch
    return half_cosine(config.lr, done / config.period)


def validate(run: QualityRun, pictures: RatedPictures, opinions: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC and RMSE on a validation set with the crops of its scores; `run.best` keeps the best SRCC."""
    run.network.eval()
    predicted = score_pictures(run.network, pictures, run.device, run.dtype, run.config.validation_crops)
    opinions = opinions[pictures.usable]
    if not np.isfinite(predicted).all():
        raise TrainingError(f"the network gives no number any more after epoch {run.epoch}: use a lower --lr")
    found = {"srcc": rank_correlation(predicted, opinions), "plcc": correlation(predicted, opinions)}
    found["rmse"] = float(np.sqrt(np.mean((predicted - opinions) ** 2)))
    return found
