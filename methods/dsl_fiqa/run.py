"""What both trainings share: the state that --resume continues from, and what a file says of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.preprocessing import Preprocessing
from training.settings import recorded
from training.state import RunState

# Settings that a resumed run may change; the others would make two runs out of one. Other pictures are found out.
FREE = {
    *("data", "validation", "real", "without", "num_workers", "cache", "encoder", "start_weights", "trunk"),
    *("device", "precision"),
}
OTHER_DATA = "the pictures are not those"


def state_of(
    config: Any,
    data: str,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> RunState:
    """What OUTPUT/state.safetensors holds of a run on these data."""
    path = Path(config.output) / "state.safetensors"
    return RunState(path, "dsl-fiqa", config, data, networks, {"optimizer": optimizer}, scaler)


def provenance(config: Any, preprocessing: Preprocessing, epochs: int, data: str) -> dict[str, str]:
    """The metadata of a network that was trained on these data: how it reads pictures, and where it comes from."""
    return {
        "preprocessing": preprocessing.to_json(),
        "settings": json.dumps(recorded(config)),
        "epochs": str(epochs),
        "data": data,
        "torch": torch.__version__,
    }
