"""Every setting of eDifFIQA's training. Each field is a flag: `--batch-size 64` sets `batch_size`.

    python -m methods.ediffiqa.train --items ITEMS --images FACES --teacher EMBEDDINGS.npz --variant T --output runs/t

ITEMS is what `python -m methods.ediffiqa.prepare` writes: items.tsv and centres.npz. FACES is the folder that the
paths of items.tsv are relative to. EMBEDDINGS.npz is written by `python evaluate.py embed`.
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
    # folder with items.tsv and centres.npz, as methods.ediffiqa.prepare writes it
    items: str = ""
    # folder that the paths of items.tsv are relative to
    images: str = ""
    # embeddings of the teacher, an FR model: an .npz with names and embeddings, or a pickle of a dict of them
    teacher: str = ""
    # every Nth image in the order of the scores validates and does not train
    validation_every: int = 10
    # most images of a step, over all processes
    batch_size: int = 128
    # processes that decode images; 0: none
    num_workers: int = 2
    # keep the decoded images in memory; auto: when they fit into 2 GB
    cache: Literal["auto", "yes", "no"] = "auto"

    # -- Network --
    # backbone: L, M, S are IResNet-100, -50, -18; T is MobileFaceNet
    variant: Literal["L", "M", "S", "T"] = "T"
    # start weights of the backbone: an FR model's state dict, whose kind and size go before --variant; none: random
    start_weights: str = ""
    # hidden width of the quality MLP
    mlp_width: int = 1024
    # so many of the backbone's last parameter tensors train, the others are frozen; 0: all train
    trained_tensors: int = 100
    # batch norms in training mode: published: all; trained: those whose weights train; frozen: none, they keep the
    # statistics of the start weights; auto: frozen with --start-weights, measured to be better, else published
    batch_norm: Literal["auto", "published", "trained", "frozen"] = "auto"

    # -- Loss --
    # weight of the representation consistency; the quality loss has 1 - theta
    theta: float = 0.5
    # how far an image's label falls with its distance to the centre of its class; 0: labels are not optimised
    epsilon: float = 0.5

    # -- Schedule --
    # passes over the data
    epochs: int = 3
    # learning rate of the backbone
    lr: float = 1e-4
    # learning rate of the quality MLP
    mlp_lr: float = 1e-3
    # constant; cosine: both rates fall along half a cosine to 0
    schedule: Literal["constant", "cosine"] = "constant"
    # maximum gradient norm of all trained weights (gradient clipping)
    clip_norm: float = 5.0
    # of new weights and of the order of the images
    seed: int = 42069

    # -- Machine and files --
    # folder of ediffiqa.safetensors, the log and the state of the run
    output: str = ""
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # arithmetic of the network; auto: bf16 on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # continue the run in --output after its last finished epoch
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        minima = {"validation_every": 2, "batch_size": 2, "mlp_width": 1, "epochs": 1}
        for name, minimum in minima.items():
            require(self, name, getattr(self, name) >= minimum, f"at least {minimum}")
        for name in ("num_workers", "trained_tensors", "seed", "epsilon"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        require(self, "theta", 0 <= self.theta <= 1, "from 0 to 1")
        for name in ("lr", "mlp_lr", "clip_norm"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")

    def batch_norm_rule(self) -> str:
        """`batch_norm` with what `auto` stands for."""
        return self.batch_norm if self.batch_norm != "auto" else "frozen" if self.start_weights else "published"


PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "default": {},
    "published": {"batch_norm": "published"},
    "small": {"variant": "T", "epochs": 20, "trained_tensors": 0, "lr": 1e-3, "batch_size": 64, "schedule": "cosine"},
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings that a command line gives: the flags over the preset over the defaults.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    config = parse_settings(Config, "methods.ediffiqa.train", __doc__, PRESETS, "default", arguments)
    require(config, "items", bool(config.items), "a folder with items.tsv and centres.npz")
    require(config, "images", bool(config.images), "the folder that the paths of items.tsv are relative to")
    require(config, "teacher", bool(config.teacher), "an .npz with the teacher's embeddings")
    require(config, "output", bool(config.output), "a folder to write to")
    return config
