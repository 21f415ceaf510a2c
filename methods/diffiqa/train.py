"""Train DifFIQA's diffusion model (Babnik, Peer, Štruc, IJCB 2023): aligned faces of good quality -> a network.

    python -m methods.diffiqa.train --data FACES --output runs/diffusion
    python -m methods.diffiqa.train --data FACES --output runs/diffusion --preset small
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from command_line import exit_code, keep_freed_memory
from methods.diffiqa.config import Config, parse_arguments
from methods.diffiqa.data import batches, find_images, fingerprint
from methods.diffiqa.loop import describe, train_steps
from methods.diffiqa.run import load_state, save_model, save_state, start_run
from model.files import only_run
from training import processes
from training.state import write_record


def train(config: Config) -> Path:
    """Train, and return the path of diffusion.safetensors."""
    device = processes.start(config.device)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with only_run(output / "state.safetensors") if processes.rank() == 0 else nullcontext():
        return train_on(config, device)


def train_on(config: Config, device: torch.device) -> Path:
    """`train` in a process that has its device and its output."""
    paths = find_images(config.data, config.identities)
    run = start_run(config, device, fingerprint(paths))
    if config.resume:
        load_state(run)
    if config.batch_size < processes.count():
        raise ValueError(f"--batch-size {config.batch_size} is too small for {processes.count()} processes")
    say(f"{len(paths)} images, {config.steps} steps, on {device} in {run.dtype}")
    done = run.step * config.accumulate
    pairs = batches(
        paths, run.diffusion.preprocessing, config.batch_size, config.seed, done, config.num_workers
    )
    path = Path(config.output) / "diffusion.safetensors"
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    with tqdm(total=config.steps, initial=run.step, desc="training", unit="step", disable=hidden) as progress:
        while run.step < config.steps:
            last = min(config.steps, (run.step // config.save_every + 1) * config.save_every)
            record = train_steps(run, pairs, last, len(paths), progress)
            say(describe(record))
            if processes.rank() == 0:
                write_record(Path(config.output) / "log.jsonl", record)
                path = save_model(run)
                save_state(run)
    pairs.close()
    return path


def say(text: str) -> None:
    """Progress goes to stderr, from one process; stdout holds the path of the result only."""
    if processes.rank() == 0:
        tqdm.write(text, file=sys.stderr)


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

    return exit_code(run, "stopped; the same command with --resume continues after the last saved step")


if __name__ == "__main__":
    sys.exit(main())
