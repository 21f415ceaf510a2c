"""Degradation learning: batches of pictures with known and with unknown degradations, and an epoch on them.

In a batch each synthetic degradation is applied to two pictures, and each picture is damaged in two ways: what a
picture shows is a distractor of every comparison.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.degradations import degrade
from faces.random_crops import cut, fit
from faces.reader import read_image
from faces.workers import as_it_is, load_batches
from methods.dsl_fiqa.config import DegradationConfig
from methods.dsl_fiqa.losses import QueueLoss, proximity_loss, supervised_contrastive_loss
from model.degradation_encoder import DegradationEncoder
from training import processes
from training.batches import on_device
from training.console import progress
from training.images import CACHE_BYTES, mixed_seed
from training.means import StepValues
from training.processes import GradientSums
from training.schedule import half_cosine
from training.step import TrainingError, backward, require_finite, step

ADVICE = "--precision fp32, or begin anew with a lower --lr"
CHUNK = 16  # pictures that travel together from the readers


class Sample(NamedTuple):
    """A crop to make: the seed of its place and of the degradation's randomness, and the degradation; "" for none."""

    path: str
    seed: int
    kind: str
    strength: float


class Pictures(NamedTuple):
    """A step: damaged crops, uint8 (m, S, S, 3), pair by pair of one degradation in the two halves; the kind (m,) of
    each, its bin of strength included; and real crops (n, S, S, 3). `pairs` are those of all processes."""

    pairs: int
    synthetic: Tensor
    kinds: Tensor
    real: Tensor


@dataclass
class DegradationRun:
    """The encoder, its optimiser, and all else that later epochs depend on."""

    config: DegradationConfig
    device: torch.device
    dtype: torch.dtype
    encoder: DegradationEncoder
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: GradientSums  # of the gradients over the processes
    queue: QueueLoss | None = None
    classifier: nn.Linear | None = None
    epoch: int = 0

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that the state holds."""
        parts = {"encoder": self.encoder, "queue": self.queue, "classifier": self.classifier}
        return {name: part for name, part in parts.items() if part is not None}


def plan(
    config: DegradationConfig, kinds: Sequence[str], paths: Sequence[str], real: Sequence[str], epoch: int
) -> list[tuple[list[Sample], list[Sample]]]:
    """For each step of an epoch the damaged crops, and as many real ones for the loss that compares both. Each of
    `paths` is damaged twice."""
    rng = np.random.default_rng((config.seed, epoch))
    steps = min(math.ceil(2 * len(paths) / config.batch_size), len(paths) // max(2, processes.count()))
    batches = []
    for rows in np.array_split(rng.permutation(len(paths)), steps):
        contents = [paths[row] for row in rows]
        turned = contents[1:] + contents[:1]
        drawn = [(str(rng.choice(kinds)), float(rng.random())) for _ in contents]
        seeds = iter(rng.integers(0, 2**62, 4 * len(contents)).tolist())
        synthetic = [
            Sample(path, next(seeds), *degradation)
            for pictures in (contents, turned)
            for path, degradation in zip(pictures, drawn, strict=True)
        ]
        count = len(synthetic) if config.loss == "proximity" else 0
        others = [real[row] for row in rng.integers(0, len(real), count)]
        batches.append((synthetic, [Sample(path, next(seeds), "", 0.0) for path in others]))
    return batches


def batches_of(
    config: DegradationConfig,
    kinds: Sequence[str],
    plans: Sequence[tuple[list[Sample], list[Sample]]],
    kept: Mapping[str, np.ndarray],
) -> Iterator[Pictures]:
    """The crops of this process's share of each step. The pairs of a share stay together."""
    shares = [(len(synthetic) // 2, share_of_pairs(synthetic), share_of(real)) for synthetic, real in plans]
    crops = crops_of(config, [sample for _, synthetic, real in shares for sample in (*synthetic, *real)], kept)
    for pairs, synthetic, real in shares:
        stacked = torch.from_numpy(np.stack([next(crops) for _ in range(len(synthetic) + len(real))]))
        labels = torch.tensor([label_of(sample, kinds, config.levels) for sample in synthetic])
        yield Pictures(pairs, stacked[: len(synthetic)], labels, stacked[len(synthetic) :])


def crops_of(
    config: DegradationConfig, samples: Sequence[Sample], kept: Mapping[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """The crop, uint8 (S, S, 3), of each sample, from pictures in memory or from files."""
    if kept:
        yield from (crop_of(kept[sample.path], sample, config.image_size) for sample in samples)
        return
    read = partial(make_crop, config.image_size)
    names = (json.dumps(sample) for sample in samples)
    loaded = chain.from_iterable(load_batches(names, as_it_is, CHUNK, config.num_workers, read))
    for sample, crop in zip(samples, loaded, strict=True):
        if crop.value is None:
            raise TrainingError(f"{sample.path} could be read when the run began: {crop.status} now")
        yield crop.value


def read_photographs(
    config: DegradationConfig, paths: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Photographs as crops are taken of them, none when they take too much memory, and the status of each that cannot
    be read. Every one is read once, so that a bad one is found now."""
    kept, bad, taken = {}, {}, 0
    prepare = partial(fitted, config.image_size)
    for picture in chain.from_iterable(load_batches(paths, prepare, CHUNK, config.num_workers)):
        if picture.value is None:
            bad[picture.path] = picture.status
            continue
        taken += picture.value.nbytes
        if config.cache == "yes" or (config.cache == "auto" and taken <= CACHE_BYTES):
            kept[picture.path] = picture.value
    return (kept if len(kept) + len(bad) == len(paths) else {}), bad


def fitted(size: int, rgb: np.ndarray) -> np.ndarray:
    """A photograph (H, W, 3) as the crops of side `size` are taken of it."""
    return fit(rgb, None, size)[0]


def label_of(sample: Sample, kinds: Sequence[str], levels: int) -> int:
    """The number of the kind and its bin of strength."""
    return list(kinds).index(sample.kind) * levels + min(int(sample.strength * levels), levels - 1)


def make_crop(size: int, name: str) -> np.ndarray:
    """The crop, uint8 (size, size, 3), of a Sample as JSON."""
    sample = Sample(*json.loads(name))
    return crop_of(read_image(sample.path), sample, size)


def crop_of(image: np.ndarray, sample: Sample, size: int) -> np.ndarray:
    """A random crop of a picture, damaged afterwards."""
    rng = np.random.default_rng(sample.seed)
    image = fitted(size, image)
    corner = rng.integers(0, (image.shape[0] - size + 1, image.shape[1] - size + 1))
    crop = cut(image, corner[None], size)[0]
    return degrade(crop, sample.kind, sample.strength, rng) if sample.kind else crop


def train_epoch(
    run: DegradationRun,
    kinds: Sequence[str],
    paths: Sequence[str],
    real: Sequence[str],
    kept: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Train the next epoch and return its line of the log. `kept` holds the pictures, or nothing when they are read
    anew. Raises TrainingError when a loss is not finite."""
    config, began = run.config, time.perf_counter()
    torch.manual_seed(mixed_seed((config.seed, run.epoch, processes.rank())))
    run.encoder.train()
    plans, values, lr = plan(config, kinds, paths, real, run.epoch), StepValues(run.device), 0.0
    batches = on_device(batches_of(config, kinds, plans, kept), run.device)
    title = f"epoch {run.epoch + 1}/{config.epochs}"
    for index, pictures in enumerate(progress(batches, title, len(plans), "step"), 1):
        lr = half_cosine(config.lr, (run.epoch + (index - 1) / len(plans)) / config.epochs)
        run.optimizer.param_groups[0]["lr"] = lr
        values.add(train_step(run, pictures))
        if values.due or index == len(plans):
            for number, (loss, norm) in values.read():
                where = f"epoch {run.epoch + 1} (step {number})"
                require_finite([config.loss], [loss], norm, run.scaler, where, ADVICE)
    mean = values.means_over_processes()[0].item()
    run.epoch += 1
    return {"epoch": run.epoch, "lr": lr, "loss": mean, "seconds": round(time.perf_counter() - began, 1)}


def train_step(run: DegradationRun, pictures: Pictures) -> Tensor:
    """One step. Returns (2,) on the device: the loss of this process's share, and the norm of the gradient."""
    loss, positives = step_loss(run, pictures)
    backward(loss / processes.count(), [run.optimizer], run.scaler, run.sums)
    norm = step(run.optimizer, run.scaler, math.inf)
    run.scaler.update()
    if run.queue is not None:
        run.queue.add(processes.gather(positives.detach(), pictures.pairs))
    return torch.stack([loss.detach(), norm])


def step_loss(run: DegradationRun, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """The loss of this process's share, and the representations of the second member of each of its pairs."""
    config, kinds = run.config, pictures.kinds
    crops = torch.cat([pictures.synthetic, pictures.real])
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        projected = run.encoder(normalise(run.encoder, crops))[1]
    z = represent(projected.float(), config.representation)
    synthetic, real = z[: len(kinds)], z[len(kinds) :]
    anchors, positives = synthetic.chunk(2)
    if config.loss == "proximity":
        loss = proximity_loss(synthetic, real, config.temperature, kinds if config.positives == "kind" else None)
    elif config.loss == "supervised":
        loss = supervised_contrastive_loss(synthetic, kinds, config.temperature)
    elif run.classifier is not None:
        loss = F.cross_entropy(run.classifier(synthetic), kinds)
    else:
        assert run.queue is not None, "a run with --loss queue has one"
        loss = run.queue(anchors, positives)
    return loss, positives


def normalise(encoder: DegradationEncoder, crops: Tensor) -> Tensor:
    """uint8 (N, S, S, 3) -> the encoder's input (N, 3, S, S), whatever S is."""
    return replace(encoder.preprocessing, size=crops.shape[1]).normalise(crops)


def represent(projected: Tensor, representation: str) -> Tensor:
    """Projections (N, 8, 12, C) -> vectors of unit length (N, C) of their mean, or (N, 96 C) of all."""
    vectors = projected.mean(dim=(1, 2)) if representation == "mean" else projected.flatten(1)
    return F.normalize(vectors, dim=1)


def share_of(samples: list[Sample]) -> list[Sample]:
    """This process's part of a list."""
    rows = processes.share(torch.arange(len(samples))).tolist()
    return [samples[row] for row in rows]


def share_of_pairs(samples: list[Sample]) -> list[Sample]:
    """This process's part of pairs, of which a list holds the first members in its first half."""
    half = len(samples) // 2
    return share_of(samples[:half]) + share_of(samples[half:])
