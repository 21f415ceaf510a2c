"""Train DSL-FIQA's quality network on rated photographs: sets in the published layout -> dsl_fiqa.safetensors.

    python -m methods.dsl_fiqa.train --data SET/train --validation SET/val --encoder DE.pt --output runs/dsl
    torchrun --nproc-per-node 4 -m methods.dsl_fiqa.train --data SET/train ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from command_line import training_exit_code
from methods.dsl_fiqa.config import QualityConfig, parse_quality
from methods.dsl_fiqa.data import RatedSet, normalised, read_pictures, read_rated_set
from methods.dsl_fiqa.loop import QualityRun, freeze_encoder, train_epoch, trained_parts, validate
from methods.dsl_fiqa.networks import load_encoder, load_quality_network, start_with_cosines
from methods.dsl_fiqa.run import FREE, OTHER_DATA, provenance, state_of
from model.checkpoint import CheckpointError, load_strict, read_checkpoint, save_checkpoint
from model.dsl_fiqa import DslFiqa
from training import processes
from training.console import say, say_left_out
from training.processes import GradientSums
from training.state import fingerprint_of_files, load_state, save_state, sole_run, write_record
from training.step import arithmetic


def train(config: QualityConfig) -> Path:
    """Train, and return the path of the network with the best SRCC on the validation set."""
    device = processes.start(config.device)
    with sole_run(config.output):
        return _train(config, device)


def _train(config: QualityConfig, device: torch.device) -> Path:
    run = start_run(config, device)
    shape = run.network.shape
    reads = shape.landmarks != "none"
    rated, validation = (read_rated_set(folder, reads) for folder in (config.data, config.validation))
    opinions, expected = (_opinions(config, one) for one in (rated, validation))
    pictures, left_out = read_pictures(rated, shape, config.cache, config.num_workers)
    judged, also = read_pictures(validation, shape, config.cache, config.num_workers)
    say_left_out((left_out | also).items())
    data = fingerprint_of_files(rated.paths[row] for row in pictures.usable)
    state = state_of(config, data, trained_parts(run.network), run.optimizer, run.scaler)
    if config.resume:
        facts, _ = load_state(state, FREE, OTHER_DATA)
        run.epoch, run.step, run.best = facts["epoch"], facts["step"], facts["best"]
    counts = f"{len(pictures.usable)} pictures to train on, {len(judged.usable)} to validate on"
    say(f"{counts}, landmark layer {shape.landmarks}, on {device} in {run.dtype}")
    targets = torch.from_numpy(opinions).float().to(device)
    path = Path(config.output) / "dsl_fiqa.safetensors"
    while run.epoch < config.epochs:
        record = train_epoch(run, pictures, targets)
        if processes.rank() > 0:
            continue
        record["validation"] = found = validate(run, judged, expected)
        if found["srcc"] > run.best:
            run.best = found["srcc"]
            save_model(run, data, path)
        record["best"] = run.best
        write_record(Path(config.output) / "log.jsonl", record)
        save_state(state, {"epoch": run.epoch, "step": run.step, "best": run.best})
        say(
            f"epoch {run.epoch}: lr {record['lr']:.3g}, loss {record['loss']:.4f}, SRCC {found['srcc']:.4f}, PLCC "
            f"{found['plcc']:.4f}, RMSE {found['rmse']:.4f}, best SRCC {run.best:.4f}"
        )
    return path


def save_model(run: QualityRun, data: str, path: Path) -> None:
    """Write the network, with where it comes from; `data` is the fingerprint of what it was trained on."""
    shape = run.network.shape
    metadata = {
        "system": "dsl-fiqa",
        "architecture": f"vision transformer of {shape.trunk_depth} blocks, landmark layer {shape.landmarks}",
        "validation": str(run.best),
        **provenance(run.config, run.network.preprocessing, run.epoch, data),
    }
    save_checkpoint(path, run.network.to_tensors(), metadata)


def start_run(config: QualityConfig, device: torch.device) -> QualityRun:
    """A run at its start weights."""
    torch.manual_seed(config.seed)
    network = make_network(config).to(device)
    freeze_encoder(network)
    trained = [weight for part in trained_parts(network).values() for weight in part.parameters()]
    optimizer = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay)
    dtype, scaler = arithmetic(config.precision, device)
    return QualityRun(config, device, dtype, network, optimizer, scaler, GradientSums(trained))


def make_network(config: QualityConfig) -> DslFiqa:
    """A new network, or that of `--start-weights`, with its encoder."""
    if config.start_weights:
        return load_quality_network(config.start_weights, config.encoder or None)
    encoder = load_encoder(config.encoder)
    network = DslFiqa(config.shape(encoder.width), encoder)
    if config.filters == "cosines":
        start_with_cosines(network.vit.patch_embed.proj, config.seed)
    if config.trunk:
        tensors, _ = read_checkpoint(config.trunk)
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.")}
        try:
            load_strict(network.vit, own, config.trunk)
        except CheckpointError as error:
            raise CheckpointError(f"--trunk: {error}") from error
    return network


def _opinions(config: QualityConfig, rated: RatedSet) -> np.ndarray:
    if config.normalise:
        return normalised(rated.scores)
    if rated.scores.min() < 0 or rated.scores.max() > 1:
        raise ValueError(f"the scores of {rated.folder} are not in [0, 1]: leave --normalise at yes")
    return rated.scores


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_quality()), "finished epoch")


if __name__ == "__main__":
    sys.exit(main())
