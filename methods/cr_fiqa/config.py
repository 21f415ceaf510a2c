"""Every setting of CR-FIQA's training. Each field is a flag: `--batch-size 64` sets `batch_size`.

    python -m methods.cr_fiqa.train --data FACES --output runs/cr_fiqa --preset small
    torchrun --nproc-per-node 4 -m methods.cr_fiqa.train --data FACES --output runs/cr_fiqa --preset webface

FACES is a folder with a sub-folder of aligned 112x112 faces for each identity, or one with train.rec and train.idx.
The presets `webface` (CR-FIQA(S), IResNet-50) and `emore` (CR-FIQA(L), IResNet-100) are the published settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.iresnet import LAYERS
from training.settings import parse_settings, require, require_choices


@dataclass(frozen=True)
class Config:
    """The comments above the fields are the help texts. A bad value raises ValueError, naming its flag."""

    # -- Data --
    # folders of identities, separated by commas, or one folder with train.rec and train.idx
    data: tuple[str, ...] = ()
    # files that name the identities to train on, one a line; without one all
    identities: tuple[str, ...] = ()
    # leave out identities with fewer images
    min_images: int = 1
    # most images of a step, over all processes
    batch_size: int = 512
    # even: all images in every epoch, in batches that differ by one image at most; full: batches of --batch-size
    # exactly, and the images that are left over are dropped, others in every epoch
    batches: Literal["even", "full"] = "even"
    # processes that decode images; 0: none
    num_workers: int = 2
    # keep the decoded images in memory, and check all before the first step; auto: when they fit into 2 GB
    cache: Literal["auto", "yes", "no"] = "auto"

    # -- Network --
    # depth of the IResNet: 18, 34, 50 or 100
    depth: int = 50
    # channels of its four stages, the first of which is the stem's too
    widths: tuple[int, ...] = (64, 128, 256, 512)
    # dropout of the last feature map, in training only
    dropout: float = 0.4
    # start weights: a backbone's state dict, whose depth and widths go before the two above; none: random
    start_weights: str = ""

    # -- Loss --
    # quality anchor: CCS / (NNCCS + 1) as in the paper, or CCS / NNCCS as in the published code
    anchor: Literal["shifted", "ratio"] = "shifted"
    # weight of the quality loss
    alpha: float = 10.0
    # weight of ArcFace's loss
    identity_weight: float = 1.0
    # scale of ArcFace's logits
    scale: float = 64.0
    # ArcFace's margin, in radians
    margin: float = 0.5
    # share of the classes that a step trains, for millions of them (partial FC); 1: all
    sample_rate: float = 1.0
    # leave classes out of the quality loss whose variance is below this share of the mean (IG-FIQA); 0: none
    variance_floor: float = 0.0
    # an FR model (.onnx, .safetensors, .pth, dlib) whose embeddings the backbone should reproduce; none: no teacher
    teacher: str = ""
    # weight of 1 - cosine to the teacher's embedding
    teacher_weight: float = 64.0

    # -- Schedule --
    # passes over the data
    epochs: int = 34
    # maximum learning rate at a batch of 512 images; it is proportional to the batch size
    lr: float = 0.1
    # steps: a tenth from each of the milestones on; cosine: half a cosine to 0
    schedule: Literal["steps", "cosine"] = "steps"
    # epochs, counted from 1, at whose beginning the learning rate is divided by ten
    milestones: tuple[int, ...] = (20, 28, 32)
    # epochs in which the learning rate rises from 0
    warm_up: float = 0.0
    # momentum of SGD
    momentum: float = 0.9
    # weight decay of SGD, on all weights
    weight_decay: float = 5e-4
    # maximum gradient norm of the backbone (gradient clipping)
    clip_norm: float = 5.0
    # random seed of new weights, of dropout, of the order of the images and of their flips
    seed: int = 323

    # -- Verification --
    # pair lists to verify on, separated by commas (as evaluate.py reads them, .bin too)
    verify: tuple[str, ...] = ()
    # folder that the pair lists' names are relative to; none: that of the list, or the one above
    verify_images: str = ""
    # steps between verifications; 0: one after each epoch
    eval_every: int = 0

    # -- Machine and files --
    # folder of {step}backbone.pth, {step}header.pth, {step}classes.txt, the log and the state of the run
    output: str = ""
    # epochs between saved networks; the last is always saved
    save_every: int = 1
    # steps from one saved state to the next within an epoch, for long epochs; 0: states between epochs only
    save_every_steps: int = 0
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # precision of the backbone's arithmetic; auto: on CUDA bf16 where the card has it, else fp16; fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # compile the backbone with torch.compile, a minute at the start; best with --batches full
    compile: bool = False
    # continue the run in --output after its last saved state
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require(self, "depth", self.depth in LAYERS, f"one of {', '.join(map(str, LAYERS))}")
        # Below 16 channels torch 2.14's convolutions corrupt the memory of the process in their backward pass on a CPU.
        wide = len(self.widths) == 4 and min(self.widths) >= 16
        require(self, "widths", wide, "four numbers of channels, each at least 16")
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        require(self, "milestones", all(epoch >= 1 for epoch in self.milestones), "epochs from 1 on")
        for name, minimum in {"batch_size": 2, "min_images": 1, "epochs": 1, "save_every": 1}.items():
            require(self, name, getattr(self, name) >= minimum, f"at least {minimum}")
        for name in ("num_workers", "eval_every", "save_every_steps", "seed", "warm_up", "weight_decay"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("alpha", "identity_weight", "teacher_weight", "margin"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        require(self, "sample_rate", 0 < self.sample_rate <= 1, "above 0 and at most 1")
        require(self, "variance_floor", 0 <= self.variance_floor < 1, "at least 0 and below 1")
        for name in ("lr", "scale", "clip_norm"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")


PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "webface": {},
    "emore": {"depth": 100, "epochs": 18, "milestones": (8, 14, 20, 25)},  # the last two are never reached
    "small": {
        "depth": 18,
        "widths": (24, 48, 96, 192),
        "batch_size": 64,
        "epochs": 20,
        "lr": 0.2,
        "schedule": "cosine",
        "warm_up": 1.0,
        "dropout": 0.2,
        "save_every": 5,
    },
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Config:
    """The settings that a command line gives: the flags over the preset over the defaults.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    config = parse_settings(Config, "methods.cr_fiqa.train", __doc__, PRESETS, "webface", arguments)
    require(config, "data", bool(config.data), "a folder of identities, or one with train.rec")
    require(config, "output", bool(config.output), "a folder to write to")
    return config
