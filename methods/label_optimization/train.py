"""Train a regression of (optimised) quality labels on a face recognition network (Babnik, Damer, Štruc, IWBF 2023).

    python -m methods.label_optimization.train --labels optimised.tsv --images FACES --backbone r100.pth \\
        --output runs/regressor
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from command_line import training_exit_code
from methods.label_optimization.config import Config, parse_arguments
from methods.label_optimization.data import read_scored_faces
from methods.label_optimization.loop import describe, train_epoch_part
from methods.label_optimization.run import load_state, make_network, model_path, save_model, save_state, start_run
from training import processes
from training.console import say, say_left_out
from training.state import sole_run, write_record


def train(config: Config) -> Path:
    """Train, and return the path of the network with the lowest validation loss."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train_on(config, device)


def _train_on(config: Config, device: torch.device) -> Path:
    model = make_network(config)
    faces, skipped = read_scored_faces(
        config.labels,
        config.images,
        model.preprocessing,
        validation_every=config.validation_every,
        cache=config.cache,
        workers=config.num_workers,
    )
    say_left_out(skipped)
    run, faces = start_run(config, device, model), faces.to(device)
    if config.resume:
        load_state(run, faces)
    steps = faces.train.steps(config.batch_size)
    counts = f"{len(faces.train.usable)} images train, {len(faces.validation.usable)} validate"
    say(f"{counts}, {steps} steps an epoch, on {device} in {run.dtype}")
    try:
        while run.step < config.epochs * steps:
            record = train_epoch_part(run, faces)
            improved = record["validation"] < run.best
            run.best = min(run.best, record["validation"])
            say(describe(record))
            if processes.rank() == 0:
                if improved:
                    save_model(run, faces)
                write_record(Path(config.output) / "log.jsonl", record | {"best": run.best})
                save_state(run, faces)
    finally:
        faces.close()
    return model_path(config)


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_arguments()), "validation")


if __name__ == "__main__":
    sys.exit(main())
