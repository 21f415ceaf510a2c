"""Every setting of train.py. Edit a value here, or give it as a flag: `--batch-size 64` sets `batch_size`.

    python generate_labels.py --data FACES --output labels.tsv
    python train.py --data-list labels.tsv --clip-model RN50.pt --checkpoints runs/rn50

The defaults are those of the published code of CLIB-FIQA (Ou et al., CVPR 2024), from which its published results came;
`--equations paper` starts from the equations of the paper instead. RN50 at the default batch of 256 images is estimated
to need about 20 GB of GPU memory. On two CPU cores RN50 trains about ten images a second, and the shipped small model,
which is the start when there is no --clip-model, some hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.settings import flag, parse_settings, require, require_choices


@dataclass(frozen=True)
class TrainConfig:
    """The comments above the fields are the help texts of train.py. A bad value raises ValueError, naming its flag."""

    # -- Data --
    # label table, as generate_labels.py writes it
    data_list: str = "labels.tsv"
    # quality anchors to [0, 1]: by the table's extremes (published), by its 1st and 99th percentile, or as they are
    normalise: Literal["minmax", "percentile", "none"] = "minmax"
    # most images of a step, over all processes
    batch_size: int = 256
    # even: all images in every epoch, in batches that differ by one image at most; full: batches of --batch-size
    # exactly, and the images that are left over are dropped, others in every epoch
    batches: Literal["even", "full"] = "even"
    # processes that decode images; 0: none, -1: one for each core, at most 12
    num_workers: int = -1
    # keep the decoded and resized images in memory; auto: when they fit into 2 GB (of each process)
    cache: Literal["auto", "yes", "no"] = "auto"
    # network: images are resized on the CPU, as in scoring; crop: 112x112 crops are enlarged on the device, which is
    # less to keep and to copy, and not rounded to whole grey levels
    cache_size: Literal["network", "crop"] = "network"

    # -- Networks --
    # start weights: a checkpoint of CLIP or CLIB-FIQA, or the name of a known one (python -m model.weights)
    clip_model: str = "clib-fiqa"
    # start weights of the calibration MLP; empty: random
    mlp: str = ""
    # what is frozen: the text tower (paper), what the published code froze, nothing, or a multi-level tower's trunk
    freeze: Literal["text-tower", "published", "none", "trunk"] = "text-tower"
    # dropout of a multi-level tower's features, in training only
    dropout: float = 0.0
    # keep the text tower in the final model; scoring does not need it, further training may
    save_text_tower: bool = True

    # -- Schedule --
    # passes over the data, both stages together
    epochs: int = 25
    # last epoch of stage 1, after which the confidences are computed; 0: stage 1 only
    calibration_epoch: int = 5
    # maximum learning rate of the image tower
    lr: float = 1e-5
    # epochs of a half wave of the cosine learning rate, which falls and rises in turn; 0: one fall over all epochs
    lr_period: int = 5
    # learning rate of the calibration MLP; none: 100 times --lr
    mlp_lr: float | None = None
    # epochs after which the learning rate of the MLP is divided by ten
    mlp_milestones: tuple[int, ...] = (3, 4)
    # weight decay of AdamW, for both networks
    weight_decay: float = 1e-3
    # maximum gradient norm of each network (gradient clipping)
    clip_norm: float = 5.0
    # random seed of the order of the images, of their flips, of dropout and of a new MLP
    seed: int = 323

    # -- Equations, where the published code and the paper differ --
    # distance of an anchor from a quality level (Eq. 1)
    soft_mapping: Literal["squared", "absolute"] = "squared"
    # distance of two cumulative distributions: root mean square over the levels, or sum (Eq. 4)
    emd: Literal["rms", "sum"] = "rms"
    # focal loss: of the batch mean of doubly softmaxed entropies, or of each image (Eq. 5)
    focal: Literal["batch", "sample"] = "batch"
    # weights of the losses: dynamic weight averaging, or the mean over the factors (Eq. 5)
    weighting: Literal["dwa", "mean"] = "dwa"
    # weight of the quality loss
    quality_weight: float = 10.0
    # weight of the losses of the five factors; 0 trains the quality only
    factor_weight: float = 1.0
    # divergence of quality and factors: the published one, or Jensen-Shannon
    confidence: Literal["double-softmax", "js"] = "double-softmax"
    # mode of the network in the calibration: train (published) uses batch statistics and moves the running ones
    calibrate_in: Literal["train", "eval"] = "train"

    # -- Machine and files --
    # folder of the final model, the log, the confidences and the state of the run
    checkpoints: str = "runs/clib_fiqa"
    # auto, cpu, cuda, cuda:1, mps; under torchrun each process takes a GPU of its own
    device: str = "auto"
    # precision of the networks' arithmetic; auto: on CUDA bf16 where the card has it, else fp16; fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # compile the image tower with torch.compile, a minute at the start; best with --batches full
    compile: bool = False
    # epochs from one saved state to the next
    save_every: int = 1
    # steps from one saved state to the next within an epoch, for long epochs; 0: states between epochs only
    save_every_steps: int = 0
    # continue the run in --checkpoints after its last saved state
    resume: bool = False
    # write the log for TensorBoard too, into --checkpoints
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        at_least = {"batch_size": 2, "epochs": 1, "save_every": 1, "num_workers": -1}
        for name in (*at_least, "calibration_epoch", "lr_period", "weight_decay", "seed", "save_every_steps"):
            minimum = at_least.get(name, 0)
            require(self, name, minimum <= getattr(self, name) < math.inf, f"at least {minimum}")
        require(self, "factor_weight", 0 <= self.factor_weight < math.inf, "at least 0")
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        for name in ("lr", "mlp_lr", "clip_norm", "quality_weight"):
            value = getattr(self, name)
            require(self, name, value is None or 0 < value < math.inf, "above 0")
        require(self, "compile", not (self.compile and self.freeze == "trunk"), "no with --freeze trunk")
        require(self, "mlp_milestones", all(epoch >= 1 for epoch in self.mlp_milestones), "epochs from 1 on")


PUBLISHED: dict[str, Any] = {}  # presets hold what differs from the defaults
PAPER: dict[str, Any] = {
    "soft_mapping": "absolute",
    "emd": "sum",
    "focal": "sample",
    "weighting": "mean",
    "confidence": "js",
    "calibrate_in": "eval",
    "lr_period": 0,
}


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The settings that a command line gives: the flags over the preset over the defaults.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    presets = {"published": PUBLISHED, "paper": PAPER}
    differences = " ".join(f"{flag(name)} {value}" for name, value in PAPER.items())
    return parse_settings(
        TrainConfig, "train.py", __doc__, presets, "published", arguments, "--equations", f"paper: {differences}"
    )
