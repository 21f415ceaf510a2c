"""Fine-tune CLIP into CLIB-FIQA (Ou et al., CVPR 2024): label table -> checkpoint, in two stages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labels.label_table import write_skipped
from methods.clib_fiqa.data import read_faces
from methods.clib_fiqa.files import load_state, model_path, save_model, tensorboard_writer, write_epoch
from methods.clib_fiqa.frozen import frozen_levels, tower_of
from methods.clib_fiqa.loop import calibrate, describe, train_epoch
from methods.clib_fiqa.run import start_run
from model.cores import available_cores
from training import processes
from training.console import say
from training.state import sole_run

if TYPE_CHECKING:
    from config_train import TrainConfig


def train(config: TrainConfig) -> Path:
    """Train both stages, and return the path of clib_fiqa.safetensors."""
    device = processes.start(config.device)
    with sole_run(config.checkpoints):
        return _train_on(config, device)


def _train_on(config: TrainConfig, device: torch.device) -> Path:
    if config.tensorboard:
        tensorboard_writer()  # before the epochs: a missing package would end the run before its first state
    run = start_run(config, device)
    faces, skipped = read_faces(
        config.data_list,
        run.model.preprocessing,
        normalise=config.normalise,
        cache=config.cache,
        cache_size=config.cache_size,
        workers=config.num_workers if config.num_workers >= 0 else min(12, available_cores()),
    )
    report_skipped(config, skipped)
    faces = faces.to(run.device)
    try:
        if config.freeze == "trunk":
            faces.images.cached = frozen_levels(tower_of(run.model), faces.images, run.device)
        if config.resume:
            load_state(run)
        count, steps = len(faces.images.usable), faces.images.describe(config.batch_size, config.batches)
        say(f"{count} images, {steps}, on {run.device} in {run.dtype}")
        while run.epoch < config.epochs:
            record = train_epoch(run, faces)
            if run.epoch == config.calibration_epoch:
                record["confidence"] = calibrate(run, faces)
            say(describe(record))
            if processes.rank() == 0:
                write_epoch(run, faces, record)
    finally:
        faces.images.close()
    if processes.rank() == 0:
        save_model(run)
    return model_path(config)


def report_skipped(config: TrainConfig, skipped: list[tuple[str, str]]) -> None:
    """Say how many rows cannot train, and list them in the folder of the run."""
    if processes.rank() > 0:
        return
    Path(config.checkpoints).mkdir(parents=True, exist_ok=True)
    side_file = write_skipped(Path(config.checkpoints) / Path(config.data_list).name, skipped)
    if skipped:
        counts = Counter(status for _, status in skipped).most_common()
        reasons = ", ".join(f"{count} {status}" for status, count in counts)
        say(f"{len(skipped)} rows cannot train ({reasons}); they are listed in {side_file}")
