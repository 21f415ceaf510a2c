"""A training run of eDifFIQA between two epochs: how it begins, and what it writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from methods.ediffiqa.config import Config
from methods.ediffiqa.data import TeacherItems
from model.backbones import embed, read_backbone
from model.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from model.ediffiqa import EDifFIQA
from model.iresnet import LAYERS, IResNet
from model.mobilefacenet import MobileFaceNetEmbedding
from training import state
from training.processes import GradientSums
from training.settings import recorded
from training.step import arithmetic

DEPTHS = {"L": 100, "M": 50, "S": 18}
# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {
    *("items", "images", "teacher", "num_workers", "cache", "start_weights", "device", "precision"),
    *("lr", "mlp_lr"),
}


@dataclass
class EDifFiqaRun:
    """The network, the optimiser, and all else that later epochs depend on."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of the network's arithmetic; weights, losses and optimiser are fp32 always
    model: EDifFIQA
    optimizer: torch.optim.Adam  # two groups: the MLP, and what trains of the backbone
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: GradientSums  # of the gradients over the processes
    epoch: int = 0  # epochs finished
    step: int = 0  # steps taken
    best: float = math.inf  # lowest validation loss so far


def make_network(config: Config, width: int) -> EDifFIQA:
    """A new network whose features have `width` numbers, as the teacher's; its backbone may come from a file."""
    if config.start_weights:
        tensors, metadata = read_checkpoint(config.start_weights)
        try:
            backbone = read_backbone(tensors, metadata)
        except CheckpointError as error:
            raise CheckpointError(f"--start-weights {config.start_weights} is no backbone: {error}") from error
        with torch.no_grad():
            size = backbone.preprocessing.size
            found = embed(backbone, torch.zeros(1, 3, size, size)).shape[1]
        if found != width:
            raise ValueError(
                f"--start-weights {config.start_weights} makes {found} numbers of a face, the teacher {width}: "
                "both must be equal, since the features should reproduce the teacher's embeddings"
            )
    elif config.variant == "T":
        backbone = MobileFaceNetEmbedding(embedding=width)
    else:
        backbone = IResNet(LAYERS[DEPTHS[config.variant]], embedding=width, quality_head=False)
    return EDifFIQA(backbone, width, config.mlp_width)


def start_run(config: Config, device: torch.device, model: EDifFIQA) -> EDifFiqaRun:
    """A run at its start weights."""
    trained = trained_parameters(model, config.trained_tensors)
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    model.to(device).to(memory_format=torch.channels_last)
    groups = [{"params": list(model.mlp.parameters()), "lr": config.mlp_lr}, {"params": trained, "lr": config.lr}]
    optimizer = torch.optim.Adam(groups, fused=device.type in ("cpu", "cuda"))
    dtype, scaler = arithmetic(config.precision, device)
    return EDifFiqaRun(config, device, dtype, model, optimizer, scaler, GradientSums(model.parameters()))


def trained_parameters(model: EDifFIQA, count: int) -> list[nn.Parameter]:
    """The last `count` parameter tensors of the backbone; all for 0."""
    return list(model.base_model.parameters())[-count:]


def save_model(run: EDifFiqaRun, items: TeacherItems) -> Path:
    """Write ediffiqa.safetensors, with where it comes from; return its path."""
    metadata = {
        "system": "ediffiqa",
        "architecture": f"{type(run.model.base_model).__name__} with a quality MLP",
        "preprocessing": run.model.preprocessing.to_json(),
        "settings": json.dumps(recorded(run.config)),
        "epochs": str(run.epoch),
        "validation": str(run.best),
        "data": items.fingerprint(),
        "torch": torch.__version__,
    }
    path = Path(run.config.output) / "ediffiqa.safetensors"
    save_checkpoint(path, run.model.state_dict(), metadata)
    return path


def save_state(run: EDifFiqaRun, items: TeacherItems) -> None:
    """Write state.safetensors: all that later epochs depend on (orders follow from seed and epoch)."""
    state.save_state(_state_of(run, items), {"epoch": run.epoch, "step": run.step, "best": run.best})


def load_state(run: EDifFiqaRun, items: TeacherItems) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off. Raises ValueError for another run's."""
    facts, _ = state.load_state(_state_of(run, items), FREE, "the images and their labels are not those")
    run.epoch, run.step, run.best = facts["epoch"], facts["step"], facts["best"]


def _state_of(run: EDifFiqaRun, items: TeacherItems) -> state.RunState:
    return state.RunState(
        Path(run.config.output) / "state.safetensors",
        "ediffiqa",
        run.config,
        items.fingerprint(),
        {"model": run.model},
        {"optimizer": run.optimizer},
        run.scaler,
    )
