"""A face recognition network with a linear regression of quality on its embedding.

DifFIQA(R) (Babnik, Peer, Štruc, IJCB 2023) and label optimisation (Babnik, Damer, Štruc, IWBF 2023) train it: a fast
network learns the scores of a slow method. The keys are the published ones, `base_model.*` and `regressor.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .backbones import Backbone, backbone_like, embed
from .checkpoint import build, size_of
from .face_trunk import FaceTrunk
from .iresnet import IResNet
from .mobilefacenet import FactorNetwork, MobileFaceNetEmbedding
from .preprocessing import Preprocessing


class QualityRegressor(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> embedding (N, D) and quality (N, 1), higher is better.

    Quality is trained on labels in [0, 1], but is not clamped to it.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, base_model: Backbone, width: int) -> None:
        super().__init__()
        self.preprocessing = base_model.preprocessing
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
        """A new regressor on a network of `load`: IResNet (without its quality head), FaceTrunk,
        MobileFaceNetEmbedding, or the trunk of a FactorNetwork. Raises ValueError for another one."""
        if isinstance(network, IResNet):
            network.qs = None
        if not isinstance(network, IResNet | FaceTrunk | MobileFaceNetEmbedding | FactorNetwork):
            raise ValueError(
                f"a {type(network).__name__} is no backbone of a regressor; an IResNet, a FaceTrunk, a "
                "MobileFaceNetEmbedding or a FactorNetwork (for its MobileFaceNet) was expected"
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
        width = size_of(tensors, "regressor.weight", axis=1)
        network = build(lambda: cls(backbone_like(tensors, "base_model."), width), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network
