"""eDifFIQA: a face recognition network with a quality MLP on its features.

Babnik, Peer and Štruc, "eDifFIQA: Towards Efficient Face Image Quality Assessment Based on Denoising Diffusion
Probabilistic Models", IEEE TBIOM 2024. The published sizes are L, M, S (IResNet-100, -50, -18) and T (MobileFaceNet).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Backbone, backbone_like, embed
from .checkpoint import build, size_of, with_prefix
from .preprocessing import Preprocessing

FIRST_LAYER = "mlp.l1.weight"


class QualityMlp(nn.Module):
    """Features (N, D) -> quality (N, 1), which is not bounded."""

    def __init__(self, features: int, width: int = 1024) -> None:
        super().__init__()
        self.l1 = nn.Linear(features, width)
        self.l2 = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(F.gelu(self.l1(x)))


class EDifFIQA(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> features (N, D) and quality (N, 1), higher is better.

    The features are those of the backbone: of unit length for MobileFaceNet, of any length for the others. Quality is
    trained on labels in [0, 1], but is not clamped to it.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, base_model: Backbone, features: int = 512, width: int = 1024) -> None:
        super().__init__()
        self.preprocessing = base_model.preprocessing
        self.base_model = base_model
        self.mlp = QualityMlp(features, width)

    @property
    def head(self) -> nn.Module:
        """What reads the quality off the features."""
        return self.mlp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = embed(self.base_model, x)
        return features, self.mlp(features)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> EDifFIQA:
        """From a state dict of any of these sizes, in eval mode. Raises CheckpointError when it does not fit.

        A prefix that all keys have in common is dropped. That is our assumption about the `pytorch_model.bin` of the
        Hugging Face repositories LSIbabnikz/eDifFIQA_*, whose layout we could not look at.
        """
        tensors = _without_common_prefix(tensors)
        width, features = (size_of(tensors, FIRST_LAYER, axis) for axis in (0, 1))
        network = build(lambda: cls(backbone_like(tensors, "base_model."), features, width), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network


def _without_common_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    first = next((key for key in tensors if key.endswith(f".{FIRST_LAYER}")), FIRST_LAYER)
    prefix = first.removesuffix(FIRST_LAYER)
    return with_prefix(tensors, prefix) if prefix and all(key.startswith(prefix) for key in tensors) else tensors
