"""The two stages of CLIB-FIQA's training (Ou et al., CVPR 2024) and the calibration of confidence between them.

Stage 1 fits the joint distribution of an image to its quality anchor and its factor labels, and a small MLP to read
the quality off the factors alone. Calibration then asks how far the two predictions diverge: the more the factors
contradict the quality, the less certain the anchor. Stage 2 fits to targets that are the flatter the less certain.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from methods.clib_fiqa.calibration import certainty, divergence
from methods.clib_fiqa.data import LabelledFaces
from methods.clib_fiqa.frozen import tower_of
from methods.clib_fiqa.losses import TASKS, earth_movers_distance, score_to_distribution, task_losses
from methods.clib_fiqa.run import ClibFiqaRun
from methods.clib_fiqa.weighting import loss_weights
from model.clib_fiqa import factor_joint, marginals
from training import processes
from training.images import Batch, mixed_seed
from training.schedule import cosine_wave, milestones
from training.step import TrainingError


def train_epoch(run: ClibFiqaRun, faces: LabelledFaces) -> dict[str, Any]:
    """Train the next epoch, in the stage that is due, and return its line of the log.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    lr, announced_lr = _set_learning_rates(run)
    weights = loss_weights(run.history, len(TASKS), config.weighting)
    factors_weighed = torch.cat([weights[:1], config.factor_weight * weights[1:], torch.ones(1)])  # the last: the MLP's
    run.model.train()
    torch.manual_seed(mixed_seed((config.seed, run.epoch, 2, processes.rank())))  # of dropout
    values = []
    steps = faces.images.batches(config.batch_size, seed=(config.seed, run.epoch))
    for step, batch in enumerate(_progress(steps, run, faces), 1):
        losses = batch_losses(run, faces, batch)
        norm = update(run, losses @ factors_weighed[: len(losses)].to(run.device))
        values.append(losses.tolist())
        _require_finite(run, step, lr, values[-1], norm)
    if config.freeze != "text-tower":
        run.model.refresh_text_features()
    run.epoch += 1
    means = torch.tensor(values, dtype=torch.float64).mean(dim=0).tolist()
    run.history.append(means[: len(TASKS)])
    return {
        "epoch": run.epoch,
        "stage": 1 if run.divergences is None else 2,
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
    rho = None if run.divergences is None else certainty(run.divergences[batch.rows]).to(run.device)
    target = score_to_distribution(faces.quality[batch.rows].to(run.device), rho, config.soft_mapping)
    labels = faces.factors[batch.rows].to(run.device)
    joint = predict(run, batch)
    losses = task_losses(joint, target, labels, config.quality_weight, config.emd, config.focal)
    if rho is not None:
        return losses
    # Detached: the MLP learns to read the factors, they do not learn to suit it.
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
    if run.config.freeze == "trunk":
        levels = batch.images[torch.arange(len(batch.flip)), batch.flip.long()]
        return tower_of(run.model).read(levels.to(run.device))
    images = batch.images.to(run.device)
    images = torch.where(batch.flip.to(run.device)[:, None, None, None], images.flip(2), images)
    return run.model.clip.encode_image(run.model.preprocessing.normalise(images))


def update(run: ClibFiqaRun, loss: Tensor) -> float:
    """One optimisation step of both networks; the longest of their gradients, before clipping."""
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    processes.sum_gradients(run.model.parameters())
    run.scaler.unscale_(run.optimizer)
    norms = [clip_grad_norm_(group["params"], run.config.clip_norm) for group in run.optimizer.param_groups]
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return torch.stack(norms).max().item()


@torch.no_grad()
def calibrate(run: ClibFiqaRun, faces: LabelledFaces) -> dict[str, float]:
    """Begin stage 2: take the divergence of each usable row, and return their summary for the log.

    As published the network stays in training mode, so each image is seen with the statistics of its batch, flipped
    or not, and the running statistics move; `calibrate_in="eval"` looks at the images as scoring will.
    """
    training = run.config.calibrate_in == "train"
    run.model.train(training)
    divergences = torch.full((len(faces.images.paths),), math.nan)
    steps = faces.images.batches(run.config.batch_size, seed=(run.config.seed, run.epoch, 1), flips=training)
    for batch in _progress(steps, run, faces):
        joint = predict(run, batch)
        quality, implied = marginals(joint)["quality"], run.mlp(factor_joint(joint))
        divergences[batch.rows] = divergence(quality, implied, run.config.confidence).cpu()
    run.divergences = divergences
    found = divergences[faces.images.usable]
    rho = certainty(found)
    return {
        f"{name}_{statistic}": getattr(values, statistic)().item()
        for name, values in (("divergence", found), ("certainty", rho))
        for statistic in ("mean", "min", "max")
    }


def _set_learning_rates(run: ClibFiqaRun) -> tuple[float, float]:
    """(used, announced) rate of the model in the coming epoch; the optimiser gets it, and the MLP's."""
    config = run.config
    used, announced = cosine_wave(run.epoch, config.lr, config.lr_period or config.epochs)
    mlp_lr = milestones(run.epoch, config.mlp_lr or 100 * config.lr, config.mlp_milestones)
    for group, rate in zip(run.optimizer.param_groups, (used, mlp_lr), strict=True):
        group["lr"] = rate
    return used, announced


def _require_finite(run: ClibFiqaRun, step: int, lr: float, losses: Sequence[float], norm: float) -> None:
    overflow = run.scaler.is_enabled()  # an infinite gradient in fp16 makes the scaler skip the step, and go on
    if all(map(math.isfinite, losses)) and (math.isfinite(norm) or overflow):
        return
    found = ", ".join(f"{name} {value:.4g}" for name, value in zip((*TASKS, "mlp"), losses, strict=False))
    raise TrainingError(
        f"the training has diverged in epoch {run.epoch + 1}, step {step}, at learning rate {lr:.3g}: losses {found}; "
        f"gradient {norm:.4g}. Saved states of earlier epochs are kept: try --resume with a lower --lr, or "
        "--precision fp32, and look for odd values of quality in the label table"
    )


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items() if value is not None)
    return "epoch {epoch}: lr {lr_used:.3g}, total {total:.4f} ({}), {seconds:.1f} s".format(losses, **record)


def _progress(batches: Iterable[Batch], run: ClibFiqaRun, faces: LabelledFaces) -> Iterator[Batch]:
    """The batches, with a bar on stderr."""
    title, total = f"epoch {run.epoch + 1}/{run.config.epochs}", faces.images.steps(run.config.batch_size)
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    yield from tqdm(batches, title, total, unit="step", leave=False, disable=hidden, file=sys.stderr)
