"""An epoch of DSL-FIQA's quality training: Charbonnier loss on opinion scores, the degradation encoder frozen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from methods.dsl_fiqa.config import QualityConfig
from methods.dsl_fiqa.data import Batch, RatedPictures, score_pictures
from methods.dsl_fiqa.evaluation import correlation, rank_correlation
from methods.dsl_fiqa.losses import charbonnier_loss
from model.dsl_fiqa import DslFiqa
from training import processes
from training.images import mixed_seed
from training.step import TrainingError


@dataclass
class QualityRun:
    """The network, its optimiser, and all else that later epochs depend on."""

    config: QualityConfig
    device: torch.device
    dtype: torch.dtype  # of the network's arithmetic; weights, loss and optimiser are fp32 always
    network: DslFiqa
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # works in fp16 only
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
    total, seen, lr = torch.zeros((), device=run.device), 0, 0.0
    for batch in pictures.epoch(config.batch_size, (config.seed, run.epoch), config.flip):
        lr = learning_rate(config, run.epoch, run.step)
        run.optimizer.param_groups[0]["lr"] = lr
        total += train_step(run, batch, opinions) * len(batch.crops)
        seen += len(batch.crops)
        run.step += 1
    run.epoch += 1
    sums = torch.stack([total, total.new_tensor(seen)])[None]
    loss, count = processes.gather(sums, processes.count()).sum(dim=0).tolist()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training has diverged in epoch {run.epoch} at learning rate {lr:.3g}: loss {loss}. The state of the "
            "epoch before is kept: try --resume with --precision fp32, or begin anew with a lower --lr or a --clip-norm"
        )
    seconds = time.perf_counter() - began
    rate = round(count / seconds, 1)
    return {"epoch": run.epoch, "step": run.step, "lr": lr, "loss": loss / count, "images_per_second": rate}


def train_step(run: QualityRun, batch: Batch, opinions: Tensor) -> Tensor:
    """One step; the mean loss of this process's share, on the device."""
    crops, landmarks = batch.crops.to(run.device), batch.landmarks.to(run.device)
    targets = opinions[processes.share(batch.rows)].to(run.device)
    images = run.network.preprocessing.normalise(crops)
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        predicted = run.network(images, landmarks)
    loss = charbonnier_loss(predicted.float(), targets, run.config.epsilon)
    run.optimizer.zero_grad()
    share = len(crops) / len(batch.rows)  # the sum over the processes is the mean over the batch
    run.scaler.scale(loss * share).backward()
    processes.sum_gradients(run.network.parameters())
    if run.config.clip_norm:
        run.scaler.unscale_(run.optimizer)
        clip_grad_norm_(run.network.parameters(), run.config.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss.detach()


def learning_rate(config: QualityConfig, epoch: int, step: int) -> float:
    """Half a cosine from `lr` to 0 in `period`, and back, counted in epochs or in steps from 0."""
    done = step if config.schedule == "batch" else epoch
    return config.lr * (1 + math.cos(math.pi * done / config.period)) / 2


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
