"""An epoch of CR-FIQA's training (Boutros et al., CVPR 2023): ArcFace, and a regression of the classifiability."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.cr_fiqa.config import Config
from methods.cr_fiqa.data import Identities
from methods.cr_fiqa.files import save_state
from methods.cr_fiqa.header import arcface_loss
from methods.cr_fiqa.losses import quality_anchor, quality_loss, teacher_loss
from methods.cr_fiqa.run import CrFiqaRun
from methods.cr_fiqa.sampling import sample_classes, update_centres
from methods.cr_fiqa.variance import teaches_quality, update_variance
from model.preprocessing import constant
from training import processes
from training.batches import mirrored, network_input, on_device
from training.console import progress
from training.images import Batch
from training.means import StepValues
from training.schedule import half_cosine, milestones
from training.state import require_same_steps
from training.step import backward, require_finite, seed_dropout, step

LR_BATCH = 512  # the batch size that --lr is meant for
LOSSES = ("identity", "quality", "teacher")
ADVICE = "a lower --lr, or a longer --warm-up, or --precision fp32"


def train_epoch(run: CrFiqaRun, identities: Identities, verify: Callable[[], Any]) -> dict[str, Any]:
    """Train the next epoch and return its line of the log; `verify` is called each `--eval-every` steps.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    config, began = run.config, time.perf_counter()
    run.backbone.train()
    images, values, seen = identities.images, StepValues(run.device, run.past), 0
    steps, done = images.steps(config.batch_size, config.batches), len(values.rows)
    if done:
        require_same_steps(run.steps, steps)
    batches = images.batches(config.batch_size, (config.seed, run.epoch), sizes=config.batches, done=done)
    rates = [learning_rate(config, run.epoch + index / steps) for index in range(steps)]
    bar = progress(on_device(batches, run.device), f"epoch {run.epoch + 1}/{config.epochs}", steps, "step", done)
    for index, batch in enumerate(bar, done + 1):
        seed_dropout(config.seed, run.epoch, index)
        values.add(train_step(run, identities, batch, rates[index - 1]), len(batch.images))
        seen += len(batch.images)
        run.step += 1
        verifying = config.eval_every > 0 and run.step % config.eval_every == 0
        saving = config.save_every_steps > 0 and index % config.save_every_steps == 0 and index < steps
        if values.due or verifying or saving or index == steps:
            for number, row in values.read():
                where = f"epoch {run.epoch + 1}, step {number}, at learning rate {rates[number - 1]:.3g}"
                require_finite(LOSSES, row[:3], row[-1], run.scaler, where, ADVICE)
        if verifying:
            verify()
            run.backbone.train()
        if saving:
            run.past, run.steps = values.over_processes(), steps
            if processes.rank() == 0:
                save_state(run, identities)
    run.past, run.steps = None, 0
    run.epoch += 1
    means = values.means_over_processes().tolist()
    seconds = time.perf_counter() - began
    return {
        "epoch": run.epoch,
        "step": run.step,
        "lr": rates[-1],
        "losses": dict(zip(LOSSES, means[:3], strict=True)),
        "ccs": means[3],
        "nnccs": means[4],
        "anchor": means[5],
        "teaches": means[6],
        "replaced": identities.images.replaced,
        "images_per_second": round(seen * processes.count() / seconds, 1),
        "seconds": round(seconds, 1),
    }


class Centres(NamedTuple):
    """What a step trains of the header: class centres (D, k), which of all classes they are (None: all), and the class
    of each image of the share among them (b,)."""

    kernel: Tensor
    rows: Tensor | None
    labels: Tensor


def train_step(run: CrFiqaRun, identities: Identities, batch: Batch, lr: float) -> Tensor:
    """One step of both optimisers. Returns (8,) on the device: the means over the share of the three losses, of CCS,
    NNCCS and anchors, the part of its images that teach quality, and the norm of the backbone's gradient."""
    config = run.config
    for optimizer in run.optimizers.values():
        optimizer.param_groups[0]["lr"] = lr
    centres = choose_centres(run, identities, batch)
    losses, facts = share_losses(run, identities, batch, centres)  # (3,), (4,)
    weights = constant((config.identity_weight, config.alpha, config.teacher_weight), losses.dtype, run.device)
    part = len(batch.images) / len(batch.rows)  # so that the sum over the processes is the mean over the batch
    backward((losses @ weights) * part, list(run.optimizers.values()), run.scaler, run.sums)
    assert centres.kernel.grad is not None, "after backward"
    processes.sum_in_place(centres.kernel.grad.t())  # contiguous, as the centres lie next to each other
    norm = step(run.optimizers["backbone"], run.scaler, config.clip_norm)
    step_header(run, centres, lr)
    run.scaler.update()
    return torch.cat([losses.detach(), facts, norm[None]])


def choose_centres(run: CrFiqaRun, identities: Identities, batch: Batch) -> Centres:
    """The centres that this step trains, the same in all processes. A sample of them, unlike all, makes a GPU wait."""
    labels = identities.labels[processes.share(batch.rows)]  # (b,)
    kernel = run.header.kernel
    if run.config.sample_rate == 1:
        return Centres(kernel, None, labels)
    generator = torch.Generator().manual_seed(run.config.seed + run.step)
    in_batch = processes.gather(labels, len(batch.rows))
    rows = sample_classes(in_batch, kernel.shape[1], run.config.sample_rate, generator)
    chosen = kernel.detach().t()[rows].t().requires_grad_()
    return Centres(chosen, rows, torch.searchsorted(rows, labels))


def step_header(run: CrFiqaRun, centres: Centres, lr: float) -> None:
    """One step of the header's optimiser, which keeps the momenta of all classes."""
    optimizer, kernel, config = run.optimizers["header"], run.header.kernel, run.config
    if centres.rows is None:
        run.scaler.step(optimizer)
        return
    assert centres.kernel.grad is not None, "after backward"
    grad = centres.kernel.grad.t() / run.scaler.get_scale()
    state = optimizer.state[kernel]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(kernel)
    if not run.scaler.is_enabled() or grad.isfinite().all():  # as the scaler, which skips a step that overflows
        momenta = state["momentum_buffer"].t()
        update_centres(kernel.t(), momenta, centres.rows, grad, lr, config.momentum, config.weight_decay)


def share_losses(run: CrFiqaRun, identities: Identities, batch: Batch, centres: Centres) -> tuple[Tensor, Tensor]:
    """The three losses (3,) of this process's share of a batch, means over its images, and the means (4,) of CCS,
    NNCCS, anchors and images that teach quality."""
    rows, config = processes.share(batch.rows), run.config
    images = network_input(mirrored(batch.images, batch.flip), run.backbone.preprocessing)  # (b, 3, S, S)
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        embeddings, predicted = run.backbone(images)  # (b, D), (b, 1)
    assert predicted is not None, "the backbone has no quality head"
    embeddings = embeddings.float()
    identity, ccs, nnccs = arcface_loss(embeddings, centres.kernel, centres.labels, config.scale, config.margin)
    anchors = quality_anchor(ccs, nnccs, config.anchor)
    teaches = _teaches(run, identities.labels[rows], ccs, len(batch.rows))
    quality = quality_loss(predicted[:, 0].float(), anchors) * teaches
    if run.targets is None:
        teacher = torch.zeros_like(identity)
    else:
        teacher = teacher_loss(embeddings, run.targets[rows, batch.flip.long()])
    facts = torch.stack([ccs, nnccs, anchors, teaches])
    return torch.stack([identity, quality, teacher]).mean(dim=1), facts.mean(dim=1)


def _teaches(run: CrFiqaRun, labels: Tensor, ccs: Tensor, total: int) -> Tensor:
    """The weight (b,) of each image of the share in the quality loss."""
    if run.variance is None:
        return torch.ones_like(ccs)
    update_variance(run.variance, processes.gather(labels, total), processes.gather(ccs, total))
    return teaches_quality(run.variance, labels, run.config.variance_floor)


def learning_rate(config: Config, epoch: float) -> float:
    """The rate at `epoch` finished epochs, a fraction in the middle of one."""
    highest = config.lr * config.batch_size / LR_BATCH
    if epoch < config.warm_up:
        return highest * (epoch + 1e-3) / config.warm_up
    if config.schedule == "cosine":
        return half_cosine(highest, (epoch - config.warm_up) / (config.epochs - config.warm_up))
    return milestones(int(epoch), highest, [milestone - 1 for milestone in config.milestones])


def describe(record: dict[str, Any]) -> str:
    """The log's line for people."""
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
    found = "; ".join(
        f"{name} accuracy {values['accuracy']:.4f}" for name, values in record.get("verification", {}).items()
    )
    return (
        f"epoch {record['epoch']} (step {record['step']}): lr {record['lr']:.3g}, {losses}, CCS {record['ccs']:.3f}, "
        f"NNCCS {record['nnccs']:.3f}, {record['images_per_second']} images/s{'; ' if found else ''}{found}"
    )
