"""A face recognition network with a linear regression of quality on its embedding.

DifFIQA(R) (Babnik, Peer, Štruc, IJCB 2023) and label optimisation (Babnik, Damer, Štruc, IWBF 2023) train it: a fast
network learns the scores of a slow method. The keys are the published ones, `base_model.*` and `regressor.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, build, with_prefix
from .face_trunk import FaceTrunk
from .iresnet import IResNet
from .mobilefacenet import FactorNetwork, MobileFaceNet
from .preprocessing import FACE_PREPROCESSING, Preprocessing

BACKBONES: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {  # a key of this backbone only -> how to make it
    "layer1.0.prelu.weight": IResNet.from_tensors,
    "gdconv.depthwise.weight": FaceTrunk.from_tensors,
    "conv_6_sep.conv.weight": MobileFaceNet.shaped_like,
}


class QualityRegressor(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> embedding (N, D) and quality (N, 1), higher is better.

    The embedding of a MobileFaceNet is the mean of its last feature map over the positions. Quality is trained on
    labels in [0, 1], but is not clamped to it.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, base_model: nn.Module, width: int) -> None:
        super().__init__()
        self.preprocessing: Preprocessing = getattr(base_model, "preprocessing", FACE_PREPROCESSING)
        self.base_model = base_model
        self.regressor = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = embed(self.base_model, x)
        return embedding, self.regressor(embedding)

    @property
    def head(self) -> nn.Module:
        """What reads the quality off the embedding."""
        return self.regressor

    @classmethod
    def on(cls, network: nn.Module) -> QualityRegressor:
        """A new regressor on a network of `load`: IResNet (without its quality head), FaceTrunk, or the trunk of a
        FactorNetwork. Raises ValueError for another one."""
        if isinstance(network, IResNet):
            network.qs = None
        if not isinstance(network, IResNet | FaceTrunk | FactorNetwork):
            raise ValueError(
                f"a {type(network).__name__} is no backbone of a regressor; an IResNet, a FaceTrunk or a FactorNetwork "
                "(for its MobileFaceNet) was expected"
            )
        size = network.preprocessing.size
        backbone = network.base_backbone if isinstance(network, FactorNetwork) else network
        with torch.no_grad():
            width = embed(backbone.eval(), torch.zeros(1, 3, size, size)).shape[1]
        regressor = cls(backbone, width)
        regressor.preprocessing = network.preprocessing
        return regressor

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> QualityRegressor:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        base = with_prefix(tensors, "base_model.")
        make = next((make for key, make in BACKBONES.items() if key in base), None)
        if make is None or "regressor.weight" not in tensors:
            raise CheckpointError(f"regressor.weight and base_model. with one of {', '.join(BACKBONES)} were expected")
        width = tensors["regressor.weight"].shape[-1]
        network = build(lambda: cls(make(base), width), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network


def embed(base_model: nn.Module, x: Tensor) -> Tensor:
    """The embedding (N, D) that a backbone makes of normalised faces."""
    output = base_model(x)
    output = output[0] if isinstance(output, tuple) else output  # IResNet gives a quality as well
    return output.mean(dim=(2, 3)) if output.dim() == 4 else output
