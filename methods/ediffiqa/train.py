"""Train eDifFIQA (Babnik, Peer, Štruc, TBIOM 2024): faces with quality labels and a teacher's embeddings -> a network.

    python -m methods.ediffiqa.train --items ITEMS --images FACES --teacher EMBEDDINGS.npz --variant T --output runs/t
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from command_line import training_exit_code
from evaluation.inputs import read_any_embeddings
from methods.ediffiqa.config import Config, parse_arguments
from methods.ediffiqa.data import read_items
from methods.ediffiqa.loop import describe, train_epoch
from methods.ediffiqa.run import load_state, make_network, save_model, save_state, start_run
from training import processes
from training.console import say, say_left_out
from training.state import sole_run, write_record


def train(config: Config) -> Path:
    """Train, and return the path of the network with the lowest validation loss."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train_on(config, device)


def _train_on(config: Config, device: torch.device) -> Path:
    torch.manual_seed(config.seed)  # of new weights
    model = make_network(config, read_any_embeddings(config.teacher).rows.shape[1])
    items, skipped = read_items(
        config.items,
        config.images,
        config.teacher,
        model.preprocessing,
        validation_every=config.validation_every,
        cache=config.cache,
        workers=config.num_workers,
    )
    say_left_out(skipped)
    run = start_run(config, device, model)
    if config.resume:
        load_state(run, items)
    counts = f"{len(items.train.usable)} images train, {len(items.validation.usable)} validate"
    say(f"{counts}, {items.train.steps(config.batch_size)} steps an epoch, on {device} in {run.dtype}")
    try:
        while run.epoch < config.epochs:
            record = train_epoch(run, items)
            improved = record["validation"]["total"] < run.best
            run.best = min(run.best, record["validation"]["total"])
            say(describe(record))
            if processes.rank() == 0:
                if improved:
                    save_model(run, items)
                write_record(Path(config.output) / "log.jsonl", record | {"best": run.best})
                save_state(run, items)
    finally:
        items.close()
    return Path(config.output) / "ediffiqa.safetensors"


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_arguments()), "finished epoch")


if __name__ == "__main__":
    sys.exit(main())
