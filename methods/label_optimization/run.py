"""A training run of the regressor between two validations: how it begins, and what it writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from methods.label_optimization.config import Config
from methods.label_optimization.data import ScoredFaces
from model import load
from model.checkpoint import save_checkpoint
from model.regressor import QualityRegressor
from training import state
from training.processes import GradientSums
from training.settings import recorded
from training.step import arithmetic

# Of the backbone's parameter tensors, counted from the last: from, to, learning rate as a factor, weight decay.
GROUPS = ((10, 0, 1.0, 1e-5), (50, 10, 0.1, 1e-6), (100, 50, 0.01, 1e-6))
HEAD_DECAY = 1e-4
# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {*("labels", "images", "num_workers", "cache", "backbone", "device", "precision", "epochs")}


@dataclass
class RegressorRun:
    """The network, the optimiser, and all else that later steps depend on."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of the network's arithmetic; weights, loss and optimiser are fp32 always
    model: QualityRegressor
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: GradientSums  # of the gradients over the processes
    step: int = 0  # steps taken
    best: float = math.inf  # lowest validation loss so far


def make_network(config: Config) -> QualityRegressor:
    """The backbone of `--backbone` with a new regression. Raises ValueError when it is none."""
    torch.manual_seed(config.seed)
    try:
        return QualityRegressor.on(load(config.backbone))
    except ValueError as error:
        raise ValueError(f"--backbone {config.backbone}: {error}") from error


def start_run(config: Config, device: torch.device, model: QualityRegressor) -> RegressorRun:
    """A run at its start weights."""
    model.to(device).to(memory_format=torch.channels_last)
    groups = parameter_groups(model, config.lr)
    model.requires_grad_(False)
    for group in groups:
        for weight in group["params"]:
            weight.requires_grad_(True)
    optimizer = torch.optim.Adam(groups, fused=device.type in ("cpu", "cuda"))
    dtype, scaler = arithmetic(config.precision, device)
    return RegressorRun(config, device, dtype, model, optimizer, scaler, GradientSums(model.parameters()))


def parameter_groups(model: QualityRegressor, lr: float) -> list[dict[str, Any]]:
    """The published groups: the regression, and the last parameter tensors of the backbone in three steps."""
    weights = list(model.base_model.parameters())
    groups = [{"params": list(model.regressor.parameters()), "lr": lr, "weight_decay": HEAD_DECAY}]
    for start, stop, factor, decay in GROUPS:
        part = weights[max(0, len(weights) - start) : max(0, len(weights) - stop)]
        if part:
            groups.append({"params": part, "lr": lr * factor, "weight_decay": decay})
    return groups


def save_model(run: RegressorRun, faces: ScoredFaces) -> None:
    """Write regressor.safetensors, with where it comes from."""
    metadata = {
        "system": "quality-regressor",
        "architecture": f"{type(run.model.base_model).__name__} with a linear regression",
        "preprocessing": run.model.preprocessing.to_json(),
        "settings": json.dumps(recorded(run.config)),
        "steps": str(run.step),
        "validation": str(run.best),
        "data": faces.fingerprint(),
        "torch": torch.__version__,
    }
    save_checkpoint(model_path(run.config), run.model.state_dict(), metadata)


def model_path(config: Config) -> Path:
    """The network with the lowest validation loss."""
    return Path(config.output) / "regressor.safetensors"


def save_state(run: RegressorRun, faces: ScoredFaces) -> None:
    """Write state.safetensors: all that later steps depend on (orders follow from seed and epoch)."""
    state.save_state(_state_of(run, faces), {"step": run.step, "best": run.best})


def load_state(run: RegressorRun, faces: ScoredFaces) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off.

    Raises ValueError when the state is of other settings or other images.
    """
    facts, _ = state.load_state(_state_of(run, faces), FREE, "the images and labels are not those")
    run.step, run.best = facts["step"], facts["best"]


def _state_of(run: RegressorRun, faces: ScoredFaces) -> state.RunState:
    return state.RunState(
        Path(run.config.output) / "state.safetensors",
        "regressor",
        run.config,
        faces.fingerprint(),
        {"model": run.model},
        {"optimizer": run.optimizer},
        run.scaler,
    )
