"""Train a regression of (optimised) quality labels on a face recognition network (Babnik, Damer, Štruc, IWBF 2023).

    python -m methods.label_optimization.train --labels optimised.tsv --images FACES --backbone r100.pth \\
        --output runs/regressor
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from command_line import exit_code, keep_freed_memory
from faces.reader import ImageError
from methods.label_optimization.config import Config, parse_arguments
from methods.label_optimization.data import read_scored_faces
from methods.label_optimization.loop import describe, train_epoch_part
from methods.label_optimization.run import load_state, make_network, model_path, save_model, save_state, start_run
from model.files import only_run
from training import processes
from training.state import write_record


def train(config: Config) -> Path:
    """Train, and return the path of the network with the lowest validation loss."""
    device = processes.start(config.device)
    model = make_network(config)
    faces, skipped = read_scored_faces(
        config.labels,
        config.images,
        model.preprocessing,
        validation_every=config.validation_every,
        cache=config.cache,
        workers=config.num_workers,
    )
    for name, status in skipped:
        say(f"left out: {name} ({status})")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with only_run(output / "state.safetensors") if processes.rank() == 0 else nullcontext():
        run = start_run(config, device, model)
        if config.resume:
            load_state(run, faces)
        steps = faces.train.steps(config.batch_size)
        counts = f"{len(faces.train.usable)} images train, {len(faces.validation.usable)} validate"
        say(f"{counts}, {steps} steps an epoch, on {device} in {run.dtype}")
        while run.step < config.epochs * steps:
            record = train_epoch_part(run, faces)
            improved = record["validation"] < run.best
            run.best = min(run.best, record["validation"])
            say(describe(record))
            if processes.rank() == 0:
                if improved:
                    save_model(run, faces)
                write_record(output / "log.jsonl", record | {"best": run.best})
                save_state(run, faces)
    return model_path(config)


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
        except ImageError as error:
            raise RuntimeError(str(error)) from error
        finally:
            processes.stop()
        return 0

    return exit_code(run, "stopped; the same command with --resume continues after the last validation")


if __name__ == "__main__":
    sys.exit(main())
