"""Where a network runs."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is `best_device`. Raises ValueError when the device cannot be used here."""
    name = best_device() if name == "auto" else name
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name} cannot be used here: {reason}") from error


def best_device() -> str:
    """cuda where there is one, else mps, else cpu."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
