"""Fine-tune CLIP into CLIB-FIQA: label table -> checkpoint. Settings and --help: config_train.py.

    python train.py --data-list labels.tsv --clip-model RN50.pt --checkpoints runs/rn50
    torchrun --nproc-per-node 4 train.py --data-list labels.tsv ...
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from command_line import keep_freed_memory
from config_train import TrainConfig, parse_arguments
from faces.label_table import write_skipped
from faces.reader import ImageError
from training import parallel
from training.data import read_faces
from training.files import load_state, save_model, write_epoch
from training.frozen import frozen_levels, tower_of
from training.loop import TrainingError, calibrate, describe, train_epoch
from training.run import start_run


def train(config: TrainConfig) -> None:
    """Train both stages and write CHECKPOINTS/clib_fiqa.safetensors."""
    run = start_run(config, parallel.start(config.device))
    faces, skipped = read_faces(
        config.data_list,
        run.model.preprocessing,
        normalise=config.normalise,
        cache=config.cache,
        workers=config.num_workers if config.num_workers >= 0 else min(12, os.cpu_count() or 1),
    )
    report_skipped(config, skipped)
    if config.freeze == "trunk":
        faces.images.cached = frozen_levels(tower_of(run.model), faces.images, run.device)
    if config.resume:
        load_state(run)
    steps = faces.images.steps(config.batch_size)
    say(f"{len(faces.images.usable)} images, {steps} steps an epoch, on {run.device} in {run.dtype}")

    while run.epoch < config.epochs:
        record = train_epoch(run, faces)
        if run.epoch == config.calibration_epoch:
            record["confidence"] = calibrate(run, faces)
        say(describe(record))
        if parallel.rank() == 0:
            write_epoch(run, faces, record)
    if parallel.rank() == 0:
        print(save_model(run))


def report_skipped(config: TrainConfig, skipped: list[tuple[str, str]]) -> None:
    """Say how many rows cannot train, and list them in the folder of the run."""
    if parallel.rank() > 0:
        return
    Path(config.checkpoints).mkdir(parents=True, exist_ok=True)
    side_file = write_skipped(Path(config.checkpoints) / Path(config.data_list).name, skipped)
    if skipped:
        counts = Counter(status for _, status in skipped).most_common()
        reasons = ", ".join(f"{count} {status}" for status, count in counts)
        say(f"{len(skipped)} rows cannot train ({reasons}); they are listed in {side_file}")


def say(text: str) -> None:
    """Progress goes to stderr, from one process; stdout holds the path of the result only."""
    if parallel.rank() == 0:
        print(text, file=sys.stderr)


def main() -> int:
    """Exit code 0, 1 for a run that failed, 2 for a call that was wrong, 130 for Ctrl-C."""
    keep_freed_memory()
    try:
        train(parse_arguments())
    except (TrainingError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command with --resume continues after the last saved epoch")
        return 130
    finally:
        parallel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
