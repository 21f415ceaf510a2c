"""One call for every system: `load("clib-fiqa")`, `load("181952backbone.pth", device="cuda")`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .center_face import CenterFace
from .checkpoint import CheckpointError, read_checkpoint
from .clib_fiqa import ClibFiqa
from .clip import CLIP
from .confidence import ConfidenceMLP
from .crop_check import CropCheck
from .degradation_encoder import DegradationEncoder
from .diffusion import GaussianDiffusion
from .dsl_fiqa import DslFiqa
from .ediffiqa import EDifFIQA
from .face_points import FacePoints
from .face_trunk import FaceTrunk
from .iresnet import ArcFaceHeader, IResNet
from .mobilefacenet import FactorNetwork, MobileFaceNetEmbedding
from .regressor import QualityRegressor

SYSTEMS: dict[str, Any] = {  # `system` in a checkpoint's metadata -> the class that its tensors make
    "clib-fiqa": ClibFiqa,
    "clip": CLIP,
    "confidence-mlp": ConfidenceMLP,
    "mfn": FactorNetwork,
    "cr-fiqa": IResNet,
    "arcface-header": ArcFaceHeader,
    "face-trunk": FaceTrunk,
    "mobilefacenet": MobileFaceNetEmbedding,
    "ediffiqa": EDifFIQA,
    "quality-regressor": QualityRegressor,
    "diffiqa-diffusion": GaussianDiffusion,
    "dsl-fiqa": DslFiqa,
    "dsl-fiqa-de": DegradationEncoder,
    "center-face": CenterFace,
    "face-points": FacePoints,
    "crop-check": CropCheck,
}
TELLING_KEYS = {  # a key that only the checkpoints of one system have -> that system
    "visual.conv1.weight": "clib-fiqa",
    "visual.conv1.0.weight": "clib-fiqa",
    "visual.trunk.conv1.0.weight": "clib-fiqa",
    "base_backbone.conv1.conv.weight": "mfn",
    "layer1.0.prelu.weight": "cr-fiqa",
    "kernel": "arcface-header",
    "gdconv.depthwise.weight": "face-trunk",
    "conv_6_dw.conv.weight": "mobilefacenet",
    "fc3.weight": "confidence-mlp",
    "mlp.l1.weight": "ediffiqa",
    "regressor.weight": "quality-regressor",
    "model.init_conv.weight": "diffiqa-diffusion",
    "conv_decoder.weight": "dsl-fiqa",
    "E.0.weight": "dsl-fiqa-de",
}


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The network of a checkpoint, in eval mode on `device`, with its `preprocessing` and `metadata`.

    `name_or_path` is a file or a name of `model/weights.py`. The system is the one that the metadata names, else the
    one whose keys the checkpoint has. Raises WeightsError when the file cannot be found, CheckpointError when it is
    damaged or fits no known system.
    """
    from .weights import find_weights  # here, so that `python -m model.weights` runs the module it names once

    path = find_weights(name_or_path)
    tensors, metadata = read_checkpoint(path)
    _require_numbers(path, tensors)
    try:
        network = SYSTEMS[_system_of(tensors, metadata)].from_tensors(tensors, metadata)
    except Exception as error:  # shapes and metadata of a hostile file make any constructor fail in any way
        reason = str(error) if isinstance(error, ValueError) else f"its shapes make no network ({error})"
        raise CheckpointError(f"{path}: {reason}") from error
    network.metadata = metadata
    return network.to(device)


def _require_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for NaN. Networks would make plausible scores of it, as a ReLU may turn it into 0."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.sum().isnan() and tensor.isnan().any():
            raise CheckpointError(f"{path}: {key} holds NaN; expected weights")


def _system_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    if "system" in metadata:
        if metadata["system"] not in SYSTEMS:
            raise CheckpointError(f"system {metadata['system']!r} is none of {', '.join(SYSTEMS)}")
        return metadata["system"]
    systems = (system for key, system in TELLING_KEYS.items() if key in tensors)
    if (system := next(systems, None)) is None and any(key.endswith(".mlp.l1.weight") for key in tensors):
        system = "ediffiqa"  # under a prefix: see EDifFIQA.from_tensors
    if system is None:
        example = ", ".join(sorted(tensors)[:4])
        raise CheckpointError(f"the keys ({example}, …) belong to none of {', '.join(SYSTEMS)}")
    return system
