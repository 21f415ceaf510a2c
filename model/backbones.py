"""The face recognition networks that a quality head is put on, told apart by the keys of their state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .checkpoint import CheckpointError, build
from .face_trunk import FaceTrunk
from .iresnet import IResNet
from .mobilefacenet import MobileFaceNet, MobileFaceNetEmbedding
from .preprocessing import Preprocessing

Backbone = IResNet | FaceTrunk | MobileFaceNetEmbedding | MobileFaceNet
KINDS: dict[str, Any] = {  # a key of this kind -> the kind; the first whose key is there
    "layer1.0.prelu.weight": IResNet,
    "gdconv.depthwise.weight": FaceTrunk,
    "conv_6_dw.conv.weight": MobileFaceNetEmbedding,
    "conv_6_sep.conv.weight": MobileFaceNet,
}


def backbone_like(tensors: Mapping[str, Tensor], prefix: str = "") -> Backbone:
    """A new backbone of the kind and the sizes found in a state dict, under `prefix`.

    Raises CheckpointError when it is of none of the kinds.
    """
    found = next((kind for key, kind in KINDS.items() if prefix + key in tensors), None)
    if found is None:
        keys = ", ".join(prefix + key for key in KINDS)
        raise CheckpointError(f"there is no backbone of a known kind: one of the keys {keys} was expected")
    return found.shaped_like(tensors, prefix)


def read_backbone(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Backbone:
    """The backbone of a state dict without prefix, in eval mode. A quality head (`qs`) is left out.

    Raises CheckpointError when it is of none of the kinds or does not fit.
    """
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("qs.")}
    network = build(lambda: backbone_like(tensors), tensors)
    network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
    return network


def embed(backbone: nn.Module, x: Tensor) -> Tensor:
    """The embedding (N, D) that a backbone makes of normalised faces (N, 3, S, S).

    That of a MobileFaceNet is the mean of its last feature map over the positions.
    """
    output = backbone(x)
    output = output[0] if isinstance(output, tuple) else output  # IResNet gives a quality as well
    return output.mean(dim=(2, 3)) if output.dim() == 4 else output
