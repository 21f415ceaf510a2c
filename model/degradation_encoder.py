"""The degradation encoder of DSL-FIQA (Chen et al., CVPR 2024): how a picture is damaged, whatever it shows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .checkpoint import build, size_of
from .preprocessing import DSL_PREPROCESSING, Preprocessing

GRID = (8, 12)  # rows and columns of the features, for a picture of any size


class DegradationEncoder(nn.Module):
    """Normalised pictures (N, 3, H, W) -> features (N, 8, 12, C), and their projection of the same shape.

    The quality network reads the features. The projection is what the contrastive losses compare.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, widths: tuple[int, int, int] = (64, 128, 256), projection: int | None = None) -> None:
        super().__init__()
        first, second, last = widths
        projection = projection or last
        self.width = last  # channels of the features
        self.preprocessing = DSL_PREPROCESSING
        self.E = nn.Sequential(
            *_convolution(3, first),
            *_convolution(first, first),
            *_convolution(first, second, stride=2),
            *_convolution(second, second),
            *_convolution(second, last, stride=2),
            *_convolution(last, last),
            nn.AdaptiveAvgPool2d(GRID),
        )
        self.mlp = nn.Sequential(nn.Linear(last, projection), nn.LeakyReLU(0.1), nn.Linear(projection, projection))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.mlp(features)

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 8, 12, C)."""
        return self.E(x).permute(0, 2, 3, 1)

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> DegradationEncoder:
        """A new encoder of the widths found in a state dict, under `prefix`."""
        first, second, last = (size_of(tensors, f"{prefix}E.{index}.weight") for index in (0, 6, 12))
        return cls((first, second, last), size_of(tensors, f"{prefix}mlp.0.weight"))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> DegradationEncoder:
        """From a state dict such as the published `DE.pt`, in eval mode. Raises CheckpointError when it does not fit.

        A file that a contrastive training wrote may hold the queue of its loss too, which no network needs.
        """
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith("style_queue")}
        encoder = build(lambda: cls.shaped_like(own), own)
        encoder.preprocessing = Preprocessing.from_metadata(metadata or {}, encoder.preprocessing)
        return encoder




def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True)
