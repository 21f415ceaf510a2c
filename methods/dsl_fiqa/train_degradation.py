"""Learn what degradations look like, whatever a picture shows: photographs -> degradation_encoder.safetensors.

    python -m methods.dsl_fiqa.train_degradation --data PHOTOS --output runs/dsl_de --preset small
    torchrun --nproc-per-node 4 -m methods.dsl_fiqa.train_degradation --data PHOTOS --real OTHERS --output runs/dsl_de
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from command_line import exit_code, keep_freed_memory
from faces.degradations import require_kinds
from faces.listing import list_images
from faces.reader import read_image
from faces.workers import load_batches
from methods.dsl_fiqa.config import DegradationConfig, parse_degradation
from methods.dsl_fiqa.degradation import CHUNK, DegradationRun, train_epoch
from methods.dsl_fiqa.losses import QueueLoss
from methods.dsl_fiqa.run import fingerprint, load_state, save_state, say, sole_run
from model.checkpoint import save_checkpoint
from model.degradation_encoder import GRID, DegradationEncoder
from model.fast import pick_precision
from model.files import open_text
from training import processes
from training.state import write_record


def train(config: DegradationConfig) -> Path:
    """Train, and return the path of the encoder."""
    with sole_run(config):
        return _train(config, processes.start(config.device))


def _train(config: DegradationConfig, device: torch.device) -> Path:
    paths = readable(photographs(config.data, config.without), config.num_workers)
    real = readable(photographs(config.real, config.without), config.num_workers) if config.real else paths
    kinds = require_kinds(config.kinds)
    run = start_run(config, len(kinds), device)
    data = fingerprint([*paths, *real])
    if config.resume:
        run.epoch = load_state(config, run.networks, run.optimizer, run.scaler, data)["epoch"]
    say(f"{len(paths)} photographs to damage in {len(kinds)} ways, {len(real)} real ones, on {device} in {run.dtype}")
    path = Path(config.output) / "degradation_encoder.safetensors"
    while run.epoch < config.epochs:
        record = train_epoch(run, kinds, paths, real)
        say(f"epoch {record['epoch']}: lr {record['lr']:.3g}, loss {record['loss']:.4f}, {record['seconds']} s")
        if processes.rank() == 0:
            facts = {"system": "dsl-fiqa-de", "kinds": json.dumps(kinds), "epoch": str(run.epoch)}
            save_checkpoint(path, run.encoder.state_dict(), facts)
            save_state(config, run.networks, run.optimizer, run.scaler, {"epoch": run.epoch, "data": data})
            write_record(Path(config.output) / "log.jsonl", record)
    return path


def start_run(config: DegradationConfig, kinds: int, device: torch.device) -> DegradationRun:
    """A run at its random start weights, for so many kinds of degradation."""
    torch.manual_seed(config.seed)
    first, second, last = config.widths
    encoder = DegradationEncoder((first, second, last)).to(device)
    width = last * (GRID[0] * GRID[1] if config.representation == "all" else 1)
    queue = classifier = None
    if config.loss == "queue":
        queue = QueueLoss(width, config.queue, config.temperature, config.seed).to(device)
    if config.loss == "classifier":
        classifier = nn.Linear(width, kinds * config.levels).to(device)
    weights = [*encoder.parameters(), *(classifier.parameters() if classifier else ())]
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay)
    dtype = pick_precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return DegradationRun(config, device, dtype, encoder, optimizer, scaler, queue, classifier)


def photographs(folders: Sequence[str], without: str = "") -> list[str]:
    """All images below the folders, but for those whose own folder is named in the file `without`."""
    left_out: set[str] = set()
    if without:
        with open_text(without) as lines:
            left_out = {line.strip() for line in lines}
    return [str(path) for folder in folders for path in list_images(folder) if path.parent.name not in left_out]


def readable(paths: Sequence[str], workers: int) -> list[str]:
    """The paths of pictures that can be read; the others are reported."""
    good = []
    for batch in load_batches(paths, _nothing, CHUNK, workers, read_image):
        for picture in batch:
            if picture.status == "ok":
                good.append(picture.path)
            else:
                say(f"left out: {picture.path} ({picture.status})")
    if len(good) < 2:
        raise ValueError(f"{len(good)} photographs can be read; at least two were expected")
    return good


def _nothing(image: object) -> None:
    """Reading was the test; the pixels are not kept."""


def main() -> int:
    """Exit code 0, 1 for a run that failed, 2 for a call that was wrong, 130 for Ctrl-C."""

    def run() -> int:
        keep_freed_memory()
        try:
            path = train(parse_degradation())
            if processes.rank() == 0:
                print(path)
        finally:
            processes.stop()
        return 0

    return exit_code(run, "stopped; the same command with --resume continues after the last finished epoch")


if __name__ == "__main__":
    sys.exit(main())
