"""Every setting of the regressor's training. Each field is a flag: `--batch-size 64` sets `batch_size`.

    python -m methods.label_optimization.train --labels optimised.tsv --images FACES --backbone r100.pth \\
        --output runs/regressor

LABELS is any table of scores or labels, as methods.label_optimization.optimize writes it. The backbone is a face
recognition network; the last of its weights are tuned along with a linear regression of the quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.settings import parse_settings, require, require_choices


@dataclass(frozen=True)
class Config:
    """The comments above the fields are the help texts. A bad value raises ValueError, naming its flag."""

    # -- Data --
    # table of scores or labels to learn
    labels: str = ""
    # folder that its paths are relative to; none: a label table's own folder, for other tables the working directory
    images: str = ""
    # of the images in the order of their qualities, every N-th validates and does not train
    validation_every: int = 20
    # most images of a step, over all processes
    batch_size: int = 128
    # processes that decode images; 0: none
    num_workers: int = 2
    # keep the decoded images in memory; auto: when they fit into 2 GB
    cache: Literal["auto", "yes", "no"] = "auto"

    # -- Network --
    # start weights: a file or a known name of an IResNet, a FaceTrunk, a MobileFaceNet, or a factor network (for its
    # trunk)
    backbone: str = ""
    # batch norms: train: by their batches, all of them (published); frozen: by the statistics of the start weights,
    # measured to be better for some thousand images
    batch_norm: Literal["train", "frozen"] = "train"

    # -- Schedule --
    # passes over the data
    epochs: int = 1
    # validations of an epoch; the network with the lowest validation loss is kept
    validations: int = 20
    # learning rate of the regression and of the backbone's last 10 parameter tensors; the 40 before them train with a
    # tenth, the 50 before those with a hundredth, the others are frozen
    lr: float = 1e-3
    # maximum gradient norm of all trained weights (gradient clipping)
    clip_norm: float = 5.0
    # of new weights and of the order of the images
    seed: int = 42069

    # -- Machine and files --
    # folder of regressor.safetensors, the log and the state of the run
    output: str = ""
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # arithmetic of the network; auto: bf16 on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # continue the run in --output after its last validation
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        for name, minimum in {"validation_every": 2, "batch_size": 2, "epochs": 1, "validations": 1}.items():
            require(self, name, getattr(self, name) >= minimum, f"at least {minimum}")
        for name in ("num_workers", "seed"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "clip_norm"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")


PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "published": {},
    "small": {"batch_size": 64, "epochs": 10, "validations": 2, "batch_norm": "frozen"},
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings that a command line gives: the flags over the preset over the defaults.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    config = parse_settings(Config, "methods.label_optimization.train", __doc__, PRESETS, "published", arguments)
    require(config, "labels", bool(config.labels), "a table of scores or labels")
    require(config, "backbone", bool(config.backbone), "the weights of a face recognition network")
    require(config, "output", bool(config.output), "a folder to write to")
    return config
