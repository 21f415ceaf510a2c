"""Every setting of DSL-FIQA's two trainings. Each field is a flag: `--batch-size 64` sets `batch_size`.

    python -m methods.dsl_fiqa.train_degradation --data PHOTOS --output runs/dsl_de --preset small
    python -m methods.dsl_fiqa.train --data SET/train --validation SET/val --output runs/dsl --preset small \\
        --encoder runs/dsl_de/degradation_encoder.safetensors

PHOTOS is a folder of photographs. SET/train and SET/val have label.json, img/ and landmark/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from faces.degradations import require_photographic
from model.dsl_fiqa import DslFiqaShape
from training.settings import parse_settings, require, require_choices


@dataclass(frozen=True)
class DegradationConfig:
    """Settings of the degradation learning. A bad value raises ValueError, naming its flag."""

    # -- Data --
    # folders of photographs that are damaged in known ways, separated by commas
    data: tuple[str, ...] = ()
    # folders of photographs whose degradations are unknown; none: those of --data, as they are
    real: tuple[str, ...] = ()
    # files that name folders (people) whose pictures are left out, one a line, separated by commas
    without: tuple[str, ...] = ()
    # degradations, separated by commas; none: all PHOTOGRAPHIC ones of faces/degradations.py
    kinds: tuple[str, ...] = ()
    # bins of strength that count as degradations of their own
    levels: int = 4
    # side of the crops
    image_size: int = 384
    # most damaged pictures of a step, over all processes; as many real ones come along
    batch_size: int = 32
    # processes that decode and damage pictures; 0: none
    num_workers: int = 2
    # keep the decoded pictures in memory and damage them in this process; auto: when they fit into 2 GB
    cache: Literal["auto", "yes", "no"] = "auto"

    # -- Network --
    # channels of the encoder's three resolutions
    widths: tuple[int, ...] = (64, 128, 256)

    # -- Loss --
    # proximity: soft proximity mapping in both directions; supervised: pictures of one kind attract each other;
    # queue: InfoNCE against a queue, the published class; classifier: cross-entropy of a linear layer, for comparison
    loss: Literal["proximity", "supervised", "queue", "classifier"] = "proximity"
    # whether a damaged picture may come back to any of its own kind and strength, or to itself only (proximity)
    positives: Literal["kind", "image"] = "kind"
    # what is compared: the mean over the 8x12 positions of the projection, or all of them, as in the published class
    representation: Literal["mean", "all"] = "mean"
    # of the softmax
    temperature: float = 0.2
    # entries of the queue
    queue: int = 2048

    # -- Schedule --
    # passes over --data
    epochs: int = 100
    # of Adam; half a cosine to 0 over the run
    lr: float = 1e-4
    # of Adam, on all weights
    weight_decay: float = 1e-5
    # of new weights, crops and degradations
    seed: int = 20

    # -- Machine and files --
    # folder of degradation_encoder.safetensors, the log and the state of the run
    output: str = ""
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # arithmetic of the encoder; auto: bf16 on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # continue the run in --output after its last finished epoch
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require_photographic(self.kinds)
        # Below 16 channels torch 2.14's convolutions corrupt the memory of the process in their backward pass on a CPU.
        wide = len(self.widths) == 3 and min(self.widths) >= 16
        require(self, "widths", wide, "three numbers of channels, each at least 16")
        require(self, "batch_size", self.batch_size >= 4 and self.batch_size % 2 == 0, "even and at least 4")
        for name, minimum in {"levels": 1, "image_size": 32, "queue": 1, "epochs": 1}.items():
            require(self, name, getattr(self, name) >= minimum, f"at least {minimum}")
        for name in ("num_workers", "seed", "weight_decay"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("lr", "temperature"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")


@dataclass(frozen=True)
class QualityConfig:
    """Settings of the quality training; the defaults are the published ones. A bad value raises ValueError."""

    # -- Data --
    # set to train on
    data: str = ""
    # set whose best SRCC chooses the weights
    validation: str = ""
    # crops of each picture of it, of which the score is the mean
    validation_crops: int = 20
    # bring the scores of each set to [0, 1], as published; no: they must lie there already
    normalise: bool = True
    # share of the pictures that are mirrored, with their landmarks
    flip: float = 0.7
    # most pictures of a step, over all processes
    batch_size: int = 16
    # processes that decode pictures; 0: none
    num_workers: int = 2
    # keep the decoded pictures in memory; auto: when they fit into 2 GB
    cache: Literal["auto", "yes", "no"] = "auto"

    # -- Network --
    # the frozen degradation encoder: DE.pt, or a file of train_degradation
    encoder: str = ""
    # start weights: IQA.pt or a file of this training, whose sizes go before those below; none: random
    start_weights: str = ""
    # state dict of a vision transformer of timm, to start the trunk with; none: random
    trunk: str = ""
    # filters with which the first layer of a new trunk begins: random, or cosines of random frequencies
    filters: Literal["random", "cosines"] = "random"
    # landmark layer: full, the published one of 116 million parameters; light, ours of 2,241; none
    landmarks: Literal["full", "light", "none"] = "full"
    # side of the crops
    image_size: int = 384
    # width of the trunk, a multiple of 64 from 64 on, or less
    trunk_width: int = 768
    # blocks of the trunk; those from the middle on are read
    trunk_depth: int = 12
    # blocks of the trunk that are read
    levels: int = 4
    # transposed attention blocks in each of the two places
    tab_blocks: int = 2
    # channels of the two Swin stacks
    widths: tuple[int, ...] = (768, 384)
    # blocks of each stage of a Swin stack
    depths: tuple[int, ...] = (2, 2)
    # hidden width of the Swin blocks' MLPs
    swin_mlp: int = 768
    # channels of the decoder, and with them of the scores' layers
    decoder_width: int = 256
    # blocks of the decoder
    decoder_blocks: int = 3

    # -- Schedule --
    # passes over the data
    epochs: int = 500
    # highest learning rate of Adam
    lr: float = 1e-5
    # of Adam, on all weights
    weight_decay: float = 1e-5
    # steps or epochs in which the learning rate falls to 0 along half a cosine; it rises again in as many
    period: int = 50
    # what the period counts: batch, as the published code, or epoch
    schedule: Literal["batch", "epoch"] = "batch"
    # of the Charbonnier loss
    epsilon: float = 1e-3
    # maximum gradient norm (gradient clipping); 0: any
    clip_norm: float = 0.0
    # of new weights, dropout, the order of the pictures, crops and flips
    seed: int = 20

    # -- Machine and files --
    # folder of dsl_fiqa.safetensors (the best so far), the log and the state of the run
    output: str = ""
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # arithmetic of the network; auto: bf16 on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # continue the run in --output after its last finished epoch
    resume: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require(self, "widths", len(self.widths) == 2 and min(self.widths) >= 16, "two numbers, each at least 16")
        require(self, "depths", bool(self.depths) and min(self.depths) >= 1, "numbers from 1 on")
        counts = ("batch_size", "tab_blocks", "levels", "swin_mlp", "decoder_blocks", "epochs", "period")
        for name in (*counts, "validation_crops"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        possible = self.levels <= self.trunk_depth - self.trunk_depth // 2
        require(self, "levels", possible, f"at most half of --trunk-depth {self.trunk_depth}")
        require(self, "image_size", self.image_size >= 64 and self.image_size % 64 == 0, "a multiple of 64")
        for name, head in {"trunk_width": 64, "decoder_width": 32}.items():
            width = getattr(self, name)
            require(self, name, width >= 16 and width % max(1, width // head) == 0, f"a multiple of {head}, or less")
        require(self, "flip", 0 <= self.flip <= 1, "from 0 to 1")
        for name in ("num_workers", "seed", "weight_decay", "clip_norm"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("lr", "epsilon"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above 0")

    def shape(self, query_width: int) -> DslFiqaShape:
        """The sizes of a new network that reads an encoder of this width."""
        first, second = self.widths
        return DslFiqaShape(
            image_size=self.image_size,
            trunk_width=self.trunk_width,
            trunk_depth=self.trunk_depth,
            trunk_classes=0,
            levels=self.levels,
            tab_blocks=self.tab_blocks,
            widths=(first, second),
            depths=self.depths,
            swin_mlp=self.swin_mlp,
            decoder_width=self.decoder_width,
            decoder_blocks=self.decoder_blocks,
            decoder_mlp=4 * self.decoder_width,
            query_width=query_width,
            landmarks=self.landmarks,
            landmark_count={"full": 500, "light": 68, "none": 0}[self.landmarks],
            spare=False,
        )


DEGRADATION_PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "published": {"loss": "queue", "representation": "all"},
    "proximity": {},
    "small": {
        "loss": "supervised",
        "temperature": 0.05,
        "image_size": 96,
        "batch_size": 64,
        "widths": (16, 32, 64),
        "epochs": 40,
        "lr": 2e-3,
    },
}
QUALITY_PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        "filters": "cosines",
        "landmarks": "light",
        "image_size": 128,
        "trunk_width": 128,
        "trunk_depth": 4,
        "levels": 2,
        "tab_blocks": 1,
        "widths": (96, 48),
        "depths": (2,),
        "swin_mlp": 128,
        "decoder_width": 64,
        "decoder_blocks": 2,
        "batch_size": 32,
        "epochs": 20,
        "lr": 4e-4,
        "period": 20,
        "schedule": "epoch",
        "clip_norm": 1.0,
        "flip": 0.5,
        "validation_crops": 2,
    },
}


def parse_degradation(arguments: Sequence[str] | None = None) -> DegradationConfig:
    """The settings of a command line. Exits with code 2 for an unknown flag, raises ValueError for a bad value."""
    program = "methods.dsl_fiqa.train_degradation"
    config = parse_settings(DegradationConfig, program, __doc__, DEGRADATION_PRESETS, "proximity", arguments)
    require(config, "data", bool(config.data), "a folder of photographs")
    require(config, "output", bool(config.output), "a folder to write to")
    return config


def parse_quality(arguments: Sequence[str] | None = None) -> QualityConfig:
    """The settings of a command line. Exits with code 2 for an unknown flag, raises ValueError for a bad value."""
    program = "methods.dsl_fiqa.train"
    config = parse_settings(QualityConfig, program, __doc__, QUALITY_PRESETS, "published", arguments)
    require(config, "data", bool(config.data), "a set to train on")
    require(config, "validation", bool(config.validation), "a set to validate on")
    require(config, "output", bool(config.output), "a folder to write to")
    missing = "DE.pt, or degradation_encoder.safetensors of methods.dsl_fiqa.train_degradation"
    require(config, "encoder", bool(config.encoder or config.start_weights), missing)
    return config
