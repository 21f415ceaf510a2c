"""A training run of the diffusion model between two steps: how it begins, and what it writes."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from methods.diffiqa.config import Config
from model import load
from model.checkpoint import save_checkpoint
from model.diffusion import GaussianDiffusion, Unet
from training import state
from training.processes import GradientSums
from training.settings import recorded
from training.step import arithmetic

# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {
    *("data", "identities", "num_workers", "start_weights", "save_every", "saved", "device", "precision"),
    *("steps", "lr"),
}


@dataclass
class DiffusionRun:
    """The network, the moving average of its weights, the optimiser, and all else that later steps depend on."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of the UNet's arithmetic; weights, loss and optimiser are fp32 always
    diffusion: GaussianDiffusion
    average: GaussianDiffusion
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: GradientSums  # of the gradients over the processes
    data: str  # hash of the images' names
    step: int = 0  # steps taken


def start_run(config: Config, device: torch.device, data: str) -> DiffusionRun:
    """A run at its start weights. Raises ValueError for start weights of another kind."""
    torch.manual_seed(config.seed)  # of new weights
    if config.start_weights:
        diffusion = load(config.start_weights)
        if not isinstance(diffusion, GaussianDiffusion):
            raise ValueError(f"--start-weights {config.start_weights} holds a {type(diffusion).__name__}, no diffusion")
    else:
        diffusion = GaussianDiffusion(Unet(config.width, config.multiples), image_size=config.size)
    diffusion = diffusion.to(device).train()
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=fused)
    dtype, scaler = arithmetic(config.precision, device)
    average = copy.deepcopy(diffusion).requires_grad_(False)
    sums = GradientSums(diffusion.parameters())
    return DiffusionRun(config, device, dtype, diffusion, average, optimizer, scaler, sums, data)


@torch.no_grad()
def update_average(run: DiffusionRun) -> None:
    """Move the average towards the weights, at first faster than `--ema-decay` says, so that it forgets the start."""
    updates = run.step // run.config.ema_every
    decay = min(run.config.ema_decay, updates / (updates + 10))
    for mean, weight in zip(run.average.parameters(), run.diffusion.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def save_model(run: DiffusionRun) -> Path:
    """Write diffusion.safetensors, with where it comes from; return its path."""
    network = run.average if run.config.saved == "average" else run.diffusion
    metadata = {
        "system": "diffiqa-diffusion",
        "preprocessing": run.diffusion.preprocessing.to_json(),
        "settings": json.dumps(recorded(run.config)),
        "steps": str(run.step),
        "data": run.data,
        "torch": torch.__version__,
    }
    path = Path(run.config.output) / "diffusion.safetensors"
    save_checkpoint(path, network.state_dict(), metadata)
    return path


def save_state(run: DiffusionRun) -> None:
    """Write state.safetensors: all that later steps depend on (orders, damage and noise follow from seed and step)."""
    state.save_state(_state_of(run), {"step": run.step})


def load_state(run: DiffusionRun) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off. Raises ValueError for another run's."""
    facts, _ = state.load_state(_state_of(run), FREE, "the images are not those")
    run.step = facts["step"]


def _state_of(run: DiffusionRun) -> state.RunState:
    return state.RunState(
        Path(run.config.output) / "state.safetensors",
        "diffiqa",
        run.config,
        run.data,
        {"diffusion": run.diffusion, "average": run.average},
        {"optimizer": run.optimizer},
        run.scaler,
    )
