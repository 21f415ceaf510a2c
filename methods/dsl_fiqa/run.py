"""What both trainings share: the state that --resume continues from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
