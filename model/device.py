"""Where a network runs."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else mps, else cpu. Raises ValueError when the device cannot be used here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"the device {name} cannot be used here: {error}") from error
