"""Train CR-FIQA (Boutros et al., CVPR 2023): faces of identities -> backbone, header, order of the classes.

    python -m methods.cr_fiqa.train --data FACES --output runs/cr_fiqa --preset small
    torchrun --nproc-per-node 4 -m methods.cr_fiqa.train --data FACES --output runs/cr_fiqa --preset webface
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from command_line import training_exit_code
from methods.cr_fiqa.config import Config, parse_arguments
from methods.cr_fiqa.data import read_identities
from methods.cr_fiqa.files import load_state, save_networks, save_state
from methods.cr_fiqa.loop import describe, train_epoch
from methods.cr_fiqa.run import CrFiqaRun, make_backbone, start_run
from methods.cr_fiqa.teacher import class_centres, teacher_embeddings
from methods.cr_fiqa.verification import PairSet, read_pair_set, verify
from training import processes
from training.batches import network_input
from training.console import say, say_left_out
from training.state import sole_run, write_record


def train(config: Config) -> Path:
    """Train, and return the path of the last {step}backbone.pth."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train_on(config, device)


def _train_on(config: Config, device: torch.device) -> Path:
    torch.manual_seed(config.seed)  # of new weights
    backbone = make_backbone(config)
    identities, skipped = read_identities(
        config.data,
        backbone.preprocessing,
        names=config.identities,
        min_images=config.min_images,
        cache=config.cache,
        workers=config.num_workers,
    )
    say_left_out(skipped)
    pair_sets = [
        read_pair_set(name, config.verify_images, backbone.preprocessing, config.num_workers) for name in config.verify
    ]
    run = start_run(config, device, backbone, identities)
    identities = identities.to(device)
    if config.teacher:
        width = backbone.fc.out_features
        run.targets = teacher_embeddings(config.teacher, identities, width, device)
        with torch.no_grad():  # as long as random centres are
            run.header.kernel.copy_(class_centres(run.targets, identities).t() * run.header.kernel.norm(dim=0).mean())
    if config.resume:
        load_state(run, identities)
    count, steps = len(identities.images.usable), identities.images.describe(config.batch_size, config.batches)
    say(f"{count} images of {len(identities.classes)} identities, {steps}, on {device} in {run.dtype}")

    path = Path(config.output) / f"{run.step}backbone.pth"
    try:
        while run.epoch < config.epochs:
            record = train_epoch(run, identities, lambda: verify_all(run, pair_sets))
            if pair_sets and not config.eval_every:
                record["verification"] = verify_all(run, pair_sets)
            record["best"] = run.best
            say(describe(record))
            if processes.rank() == 0:
                write_record(Path(config.output) / "log.jsonl", record)
                if run.epoch % config.save_every == 0 or run.epoch == config.epochs:
                    path = save_networks(run, identities)
                    save_state(run, identities)
    finally:
        identities.images.close()
    return path


def verify_all(run: CrFiqaRun, pair_sets: list[PairSet]) -> dict[str, Any]:
    """Verify on each pair list; keeps the best accuracies in `run.best`.

    All processes must call this: each embeds a share of every batch, and all get the same result. If one did it alone,
    the others would wait for it, on a GPU no longer than NCCL's time limit.
    """
    run.backbone.eval()

    @torch.inference_mode()
    def embed(images: Tensor) -> Tensor:
        own = processes.share(images)  # (b, S, S, 3)
        if len(own):
            with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
                embeddings = run.backbone(network_input(own.to(run.device), run.backbone.preprocessing))[0].float()
        else:
            embeddings = torch.zeros(0, run.backbone.fc.out_features, device=run.device)
        return processes.gather(embeddings, len(images))

    found = {pair_set.name: {"step": run.step, **verify(embed, pair_set)} for pair_set in pair_sets}
    for name, values in found.items():
        if values["accuracy"] > run.best.get(name, {"accuracy": 0})["accuracy"]:
            run.best[name] = values
    return found


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_arguments()), "saved state")


if __name__ == "__main__":
    sys.exit(main())
