"""Steps of the training of DifFIQA's diffusion model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from methods.diffiqa.data import Pairs
from methods.diffiqa.losses import diffusion_loss
from methods.diffiqa.run import DiffusionRun, update_average
from training import processes
from training.images import mixed_seed
from training.step import TrainingError


def train_steps(run: DiffusionRun, pairs: Iterator[Pairs], last: int, images: int, progress: tqdm) -> dict[str, Any]:
    """Train up to step `last` and return its line of the log; `images` is the number of images of the data.

    Raises TrainingError when the loss or the gradient is not finite.
    """
    config, began, first = run.config, time.perf_counter(), run.step
    total = 0.0
    while run.step < last:
        loss, norm = train_step(run, pairs)
        overflow = run.scaler.is_enabled()  # an infinite gradient in fp16 makes the scaler skip the step, and go on
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflow):
            raise TrainingError(
                f"the training has diverged in step {run.step + 1}: loss {loss:.4g}, gradient {norm:.4g}. The last "
                "saved state is kept: try --resume with a lower --lr, or --precision fp32"
            )
        total += loss
        run.step += 1
        if run.step % config.ema_every == 0:
            update_average(run)
        progress.update()
    seen, seconds = (run.step - first) * config.batch_size * config.accumulate, time.perf_counter() - began
    return {
        "epoch": run.step * config.batch_size * config.accumulate / images,  # passes over the data
        "step": run.step,
        "lr": config.lr,
        "loss": total / (run.step - first),
        "images_per_second": round(seen / seconds, 2),
        "seconds": round(seconds, 1),
    }


def train_step(run: DiffusionRun, pairs: Iterator[Pairs]) -> tuple[float, float]:
    """One step of the optimiser, on `--accumulate` batches: the mean loss, and the length of the gradient."""
    config = run.config
    run.optimizer.param_groups[0]["lr"] = config.lr
    run.optimizer.zero_grad()
    total = torch.zeros((), device=run.device)
    for part in range(config.accumulate):
        loss = share_loss(run, next(pairs), part) / config.accumulate
        run.scaler.scale(loss).backward()
        total += loss.detach()
    processes.sum_gradients(run.diffusion.parameters())
    processes.sum_in_place(total)
    run.scaler.unscale_(run.optimizer)
    norm = clip_grad_norm_(run.diffusion.parameters(), config.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return total.item(), norm.item()


def share_loss(run: DiffusionRun, pairs: Pairs, part: int) -> Tensor:
    """What this process's share of a batch adds to the mean loss of the whole batch."""
    config, normalise = run.config, run.diffusion.preprocessing.normalise
    generator = torch.Generator().manual_seed(mixed_seed((config.seed, run.step, part)))
    side = run.diffusion.preprocessing.size
    times = torch.randint(config.times, (config.batch_size,), generator=generator)[pairs.places]
    noise = torch.randn(config.batch_size, 3, side, side, generator=generator)[pairs.places]
    low, high = normalise(pairs.low.to(run.device)), normalise(pairs.high.to(run.device))
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        loss = diffusion_loss(run.diffusion, low, high, times.to(run.device), noise.to(run.device))
    return loss * (len(pairs.places) / config.batch_size)


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    return (
        f"step {record['step']} ({record['epoch']:.2f} passes over the images): loss {record['loss']:.5f}, "
        f"{record['images_per_second']} images/s"
    )
