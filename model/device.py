"""Where a network runs."""

from __future__ import annotations

import re

import torch


def pick_device(name: str) -> torch.device:
    """The device of this name: auto (`best_device`), cpu, cuda, cuda:N or mps.

    Raises ValueError for another name, and when the device cannot be used here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ValueError(f"there is no device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    name = best_device() if name == "auto" else name
    if name == "mps" and not torch.backends.mps.is_available():  # torch's own message lists its 50 backends
        raise ValueError("the device mps cannot be used here: this machine or this torch has no Apple GPU")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name} cannot be used here: {reason}") from error


def best_device() -> str:
    """cuda where there is one, else mps, else cpu."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
