"""Every setting of the training of DifFIQA's diffusion model. Each field is a flag: `--batch-size 8` sets `batch_size`.

    python -m methods.diffiqa.train --data FACES --output runs/diffusion
    python -m methods.diffiqa.train --data FACES --output runs/diffusion --preset small

FACES are aligned faces of good quality; their identities are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.diffusion import BLEND_STEPS, GROUPS
from training.settings import parse_settings, require, require_choices


@dataclass(frozen=True)
class Config:
    """The comments above the fields are the help texts. A bad value raises ValueError, naming its flag."""

    # -- Data --
    # images, folders, patterns or @list.txt, separated by commas
    data: tuple[str, ...] = ()
    # files that name the sub-folders (identities) to train on, one a line; without one all
    identities: tuple[str, ...] = ()
    # images of a pass, over all processes
    batch_size: int = 16
    # passes whose gradients a step adds up
    accumulate: int = 4
    # processes that read and degrade images; 0: none
    num_workers: int = 2

    # -- Network --
    # side of the images in pixels
    size: int = 112
    # channels of the UNet's first level
    width: int = 128
    # channels of its levels, as multiples of the width
    multiples: tuple[int, ...] = (1, 2, 4, 8)
    # start weights: a diffusion model, whose sizes go before the three above; none: random
    start_weights: str = ""

    # -- Schedule --
    # steps of the optimiser
    steps: int = 100_000
    # learning rate of Adam
    lr: float = 8e-5
    # time steps of training: from 0 to below this
    times: int = 100
    # maximum gradient norm (gradient clipping)
    clip_norm: float = 1.0
    # share of the old average in the moving average of the weights
    ema_decay: float = 0.995
    # steps between its updates
    ema_every: int = 10
    # of new weights, the order of the images, their flips, damage and noise
    seed: int = 0

    # -- Machine and files --
    # folder of diffusion.safetensors, the log and the state of the run
    output: str = ""
    # steps between saved states and lines of the log; the last step is always saved
    save_every: int = 500
    # the weights that diffusion.safetensors holds: the moving average, or the last ones, as published
    saved: Literal["average", "last"] = "average"
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # arithmetic of the UNet; auto: bf16 on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # continue the run in --output after its last saved step
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("batch_size", "accumulate", "steps", "ema_every", "save_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_workers", "seed"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        # Below 16 channels torch 2.14's convolutions corrupt the memory of the process in their backward pass on a CPU.
        wide = self.width >= 16 and self.width % GROUPS == 0
        require(self, "width", wide, f"at least 16, and a multiple of {GROUPS}")
        multiples = bool(self.multiples) and min(self.multiples) >= 1
        require(self, "multiples", multiples, "at least one number from 1 on")
        shrinks = 2 ** (len(self.multiples) - 1)
        require(self, "size", self.size > 0 and self.size % shrinks == 0, f"a multiple of {shrinks}")
        require(self, "times", 1 <= self.times <= BLEND_STEPS, f"from 1 to {BLEND_STEPS}")
        require(self, "ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        for name in ("lr", "clip_norm"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")


PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "published": {},
    "small": {
        "size": 64,
        "width": 32,
        "multiples": (1, 2, 4),
        "batch_size": 8,
        "accumulate": 1,
        "steps": 3000,
        "lr": 4e-4,
        "save_every": 100,
    },
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings that a command line gives: the flags over the preset over the defaults.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    config = parse_settings(Config, "methods.diffiqa.train", __doc__, PRESETS, "published", arguments)
    require(config, "data", bool(config.data), "a folder of faces")
    require(config, "output", bool(config.output), "a folder to write to")
    return config
