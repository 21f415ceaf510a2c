"""Train eDifFIQA (Babnik, Peer, Štruc, TBIOM 2024): faces with quality labels and a teacher's embeddings -> a network.

    python -m methods.ediffiqa.train --items ITEMS --images FACES --teacher EMBEDDINGS.npz --variant T --output runs/t
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from command_line import exit_code, keep_freed_memory
from evaluation.embeddings import read_embeddings
from methods.ediffiqa.config import Config, parse_arguments
from methods.ediffiqa.data import read_items
from methods.ediffiqa.loop import describe, train_epoch
from methods.ediffiqa.run import load_state, make_network, save_model, save_state, start_run
from model.files import only_run
from training import processes
from training.state import write_record


def train(config: Config) -> Path:
    """Train, and return the path of the network with the lowest validation loss."""
    device = processes.start(config.device)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with only_run(output / "state.safetensors") if processes.rank() == 0 else nullcontext():
        return train_on(config, device)


def train_on(config: Config, device: torch.device) -> Path:
    """`train` in a process that has its device and its output."""
    torch.manual_seed(config.seed)  # of new weights
    model = make_network(config, read_embeddings(config.teacher).rows.shape[1])
    items, skipped = read_items(
        config.items,
        config.images,
        config.teacher,
        model.preprocessing,
        validation_every=config.validation_every,
        cache=config.cache,
        workers=config.num_workers,
    )
    for name, status in skipped:
        say(f"left out: {name} ({status})")
    run = start_run(config, device, model)
    if config.resume:
        load_state(run, items)
    counts = f"{len(items.train.usable)} images train, {len(items.validation.usable)} validate"
    say(f"{counts}, {items.train.steps(config.batch_size)} steps an epoch, on {device} in {run.dtype}")
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
    return Path(config.output) / "ediffiqa.safetensors"


def say(text: str) -> None:
    """Progress goes to stderr, from one process; stdout holds the path of the result only."""
    if processes.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0, 1 for a run that failed, 2 for a call that was wrong, 130 for Ctrl-C."""

    def run() -> int:
        keep_freed_memory()
        try:
            path = train(parse_arguments())
            if processes.rank() == 0:
                print(path)
        finally:
            processes.stop()
        return 0

    return exit_code(run, "stopped; the same command with --resume continues after the last finished epoch")


if __name__ == "__main__":
    sys.exit(main())
