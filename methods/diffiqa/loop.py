"""Steps of the training of DifFIQA's diffusion model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.diffiqa.config import Config
from methods.diffiqa.data import Pairs
from methods.diffiqa.losses import diffusion_loss
from methods.diffiqa.run import DiffusionRun, update_average
from training import processes
from training.console import counter
from training.images import mixed_seed
from training.means import StepValues
from training.step import backward, require_finite, step

ADVICE = "a lower --lr, or --precision fp32"


class NoisyPairs(NamedTuple):
    """This process's share of a batch, the `part` of its images: RGB uint8 (b, S, S, 3) of low and of high quality,
    time steps (b,) and noise (b, 3, S, S)."""

    low: Tensor
    high: Tensor
    times: Tensor
    noise: Tensor
    part: float


def with_noise(config: Config, pairs: Iterable[Pairs], side: int, done: int) -> Iterator[NoisyPairs]:
    """Batches after the first `done`, with time steps and noise that follow from the seed, on images of this side."""
    size = config.batch_size
    for number, batch in enumerate(pairs, done):
        generator = torch.Generator().manual_seed(mixed_seed((config.seed, *divmod(number, config.accumulate))))
        times = torch.randint(config.times, (size,), generator=generator)[batch.places]
        noise = torch.randn(size, 3, side, side, generator=generator)[batch.places]
        yield NoisyPairs(batch.low, batch.high, times, noise, len(batch.places) / size)


def train_steps(run: DiffusionRun, batches: Iterator[NoisyPairs], last: int, images: int) -> dict[str, Any]:
    """Train up to step `last` and return its line of the log; `images` is the number of images of the data.

    Raises TrainingError when the loss or the gradient is not finite.
    """
    config, began, first = run.config, time.perf_counter(), run.step
    values = StepValues(run.device)
    with counter("training", config.steps, "step", run.step) as bar:
        while run.step < last:
            values.add(train_step(run, batches))
            run.step += 1
            if run.step % config.ema_every == 0:
                update_average(run)
            if values.due or run.step == last:
                for number, (loss, norm) in values.read():
                    require_finite(["reconstruction"], [loss], norm, run.scaler, f"step {first + number}", ADVICE)
            bar.update()
    seen, seconds = (run.step - first) * config.batch_size * config.accumulate, time.perf_counter() - began
    return {
        "epoch": run.step * config.batch_size * config.accumulate / images,  # passes over the data
        "step": run.step,
        "lr": config.lr,
        "loss": values.means()[0].item(),
        "images_per_second": round(seen / seconds, 2),
        "seconds": round(seconds, 1),
    }


def train_step(run: DiffusionRun, batches: Iterator[NoisyPairs]) -> Tensor:
    """One step of the optimiser, on `--accumulate` batches. Returns (2,) on the device: the mean loss, and the norm of
    the gradient."""
    config = run.config
    run.optimizer.param_groups[0]["lr"] = config.lr
    total = torch.zeros((), device=run.device)
    for part in range(config.accumulate):
        loss = share_loss(run, next(batches)) / config.accumulate
        backward(loss, [run.optimizer], run.scaler, run.sums, first=part == 0, last=part == config.accumulate - 1)
        total += loss.detach()
    processes.sum_in_place(total)
    norm = step(run.optimizer, run.scaler, config.clip_norm)
    run.scaler.update()
    return torch.stack([total, norm])


def share_loss(run: DiffusionRun, batch: NoisyPairs) -> Tensor:
    """What this process's share of a batch adds to the mean loss of the whole batch."""
    low, high = (run.diffusion.preprocessing.normalise(images) for images in (batch.low, batch.high))
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        return diffusion_loss(run.diffusion, low, high, batch.times, batch.noise) * batch.part


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    return (
        f"step {record['step']} ({record['epoch']:.2f} passes over the images): loss {record['loss']:.5f}, "
        f"{record['images_per_second']} images/s"
    )
