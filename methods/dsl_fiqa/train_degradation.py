"""Learn what degradations look like, whatever a picture shows: photographs -> degradation_encoder.safetensors.

    python -m methods.dsl_fiqa.train_degradation --data PHOTOS --output runs/dsl_de --preset small
    torchrun --nproc-per-node 4 -m methods.dsl_fiqa.train_degradation --data PHOTOS --real OTHERS --output runs/dsl_de
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from command_line import training_exit_code
from faces.degradations import require_photographic
from methods.dsl_fiqa.config import DegradationConfig, parse_degradation
from methods.dsl_fiqa.data import photographs
from methods.dsl_fiqa.degradation import DegradationRun, read_photographs, train_epoch
from methods.dsl_fiqa.losses import QueueLoss
from methods.dsl_fiqa.run import FREE, OTHER_DATA, provenance, state_of
from model.checkpoint import save_checkpoint
from model.degradation_encoder import GRID, DegradationEncoder
from training import processes
from training.console import say, say_left_out
from training.processes import GradientSums
from training.state import fingerprint_of_files, load_state, save_state, sole_run, write_record
from training.step import arithmetic


def train(config: DegradationConfig) -> Path:
    """Train, and return the path of the encoder."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train(config, device)


def _train(config: DegradationConfig, device: torch.device) -> Path:
    found = photographs(config.data, config.without)
    others = photographs(config.real, config.without) if config.real else found
    kept, bad = read_photographs(config, list(dict.fromkeys([*found, *others])))
    say_left_out(bad.items())
    paths, real = (usable(listed, bad) for listed in (found, others))
    kinds = require_photographic(config.kinds)
    run = start_run(config, len(kinds), device)
    data = fingerprint_of_files([*paths, *real])
    state = state_of(config, data, run.networks, run.optimizer, run.scaler)
    if config.resume:
        run.epoch = load_state(state, FREE, OTHER_DATA)[0]["epoch"]
    say(f"{len(paths)} photographs to damage in {len(kinds)} ways, {len(real)} real ones, on {device} in {run.dtype}")
    path = Path(config.output) / "degradation_encoder.safetensors"
    while run.epoch < config.epochs:
        record = train_epoch(run, kinds, paths, real, kept)
        say(f"epoch {record['epoch']}: lr {record['lr']:.3g}, loss {record['loss']:.4f}, {record['seconds']} s")
        if processes.rank() == 0:
            save_encoder(run, kinds, data, path)
            write_record(Path(config.output) / "log.jsonl", record)
            save_state(state, {"epoch": run.epoch})
    return path


def save_encoder(run: DegradationRun, kinds: Sequence[str], data: str, path: Path) -> None:
    """Write the encoder, with where it comes from; `data` is the fingerprint of what it was trained on."""
    preprocessing = replace(run.encoder.preprocessing, size=run.config.image_size)
    metadata = {
        "system": "dsl-fiqa-de",
        "architecture": f"convolutional encoder of {' '.join(map(str, run.config.widths))} channels",
        "kinds": json.dumps(kinds),
        **provenance(run.config, preprocessing, run.epoch, data),
    }
    save_checkpoint(path, run.encoder.state_dict(), metadata)


def start_run(config: DegradationConfig, kinds: int, device: torch.device) -> DegradationRun:
    """A run at its random start weights, for so many kinds of degradation."""
    torch.manual_seed(config.seed)
    first, second, last = config.widths
    encoder = DegradationEncoder((first, second, last)).to(device).to(memory_format=torch.channels_last)
    width = last * (GRID[0] * GRID[1] if config.representation == "all" else 1)
    queue = classifier = None
    if config.loss == "queue":
        queue = QueueLoss(width, config.queue, config.temperature, config.seed).to(device)
    if config.loss == "classifier":
        classifier = nn.Linear(width, kinds * config.levels).to(device)
    weights = [*encoder.parameters(), *(classifier.parameters() if classifier else ())]
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay)
    dtype, scaler = arithmetic(config.precision, device)
    return DegradationRun(config, device, dtype, encoder, optimizer, scaler, GradientSums(weights), queue, classifier)


def usable(paths: Sequence[str], bad: Mapping[str, str]) -> list[str]:
    """The paths of pictures that can be read."""
    found = [path for path in paths if path not in bad]
    if len(found) < 2:
        raise ValueError(f"{len(found)} photographs can be read; at least two were expected")
    return found


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_degradation()), "finished epoch")


if __name__ == "__main__":
    sys.exit(main())
