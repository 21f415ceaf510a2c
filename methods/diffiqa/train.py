"""Train DifFIQA's diffusion model (Babnik, Peer, Štruc, IJCB 2023): aligned faces of good quality -> a network.

    python -m methods.diffiqa.train --data FACES --output runs/diffusion
    python -m methods.diffiqa.train --data FACES --output runs/diffusion --preset small
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from command_line import training_exit_code
from methods.diffiqa.config import Config, parse_arguments
from methods.diffiqa.data import batches, find_images
from methods.diffiqa.loop import describe, train_steps, with_noise
from methods.diffiqa.run import load_state, save_model, save_state, start_run
from training import processes
from training.batches import on_device
from training.console import say
from training.state import fingerprint_of_files, sole_run, write_record


def train(config: Config) -> Path:
    """Train, and return the path of diffusion.safetensors."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train_on(config, device)


def _train_on(config: Config, device: torch.device) -> Path:
    paths = find_images(config.data, config.identities)
    run = start_run(config, device, fingerprint_of_files(paths))
    if config.resume:
        load_state(run)
    if config.batch_size < processes.count():
        raise ValueError(f"--batch-size {config.batch_size} is too small for {processes.count()} processes")
    say(f"{len(paths)} images, {config.steps} steps, on {device} in {run.dtype}")
    done = run.step * config.accumulate
    preprocessing = run.diffusion.preprocessing
    pairs = batches(paths, preprocessing, config.batch_size, config.seed, done, config.num_workers)
    noisy = on_device(with_noise(config, pairs, preprocessing.size, done), device)
    path = Path(config.output) / "diffusion.safetensors"
    try:
        while run.step < config.steps:
            last = min(config.steps, (run.step // config.save_every + 1) * config.save_every)
            record = train_steps(run, noisy, last, len(paths))
            say(describe(record))
            if processes.rank() == 0:
                write_record(Path(config.output) / "log.jsonl", record)
                path = save_model(run)
                save_state(run)
    finally:
        pairs.close()
    return path


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_arguments()), "saved step")


if __name__ == "__main__":
    sys.exit(main())
