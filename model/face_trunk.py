"""MobileFaceNet (Chen et al., 2018) in its MobileNetV2-like form, as github.com/foamliu/MobileFaceNet trained it.

A small face recognition network, 128-d embeddings of aligned faces, which also serves as the image tower of a small
CLIB-FIQA. Any width loads; the depth and the three strides of the fifteen blocks are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build, count_blocks, size_of
from .preprocessing import IMAGENET_FACE_PREPROCESSING, Preprocessing

BLOCKS = (*[(128, 64)] * 5, (256, 128), *[(256, 128)] * 6, (512, 128), *[(256, 128)] * 2)  # (hidden, output) channels
STRIDED_BLOCKS = (0, 5, 12)


class ConvNormReLU6(nn.Sequential):
    """Convolution without bias, batch norm, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class DepthwiseStem(nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)), inplace=True)
        return F.relu(self.bn2(self.pointwise(x)), inplace=True)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where resolution and width stay the same."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            ConvNormReLU6(inputs, hidden, kernel=1),
            ConvNormReLU6(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class GlobalDepthwise(nn.Module):
    """One learned weight for each position of each channel, instead of global average pooling."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class FaceTrunk(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> embeddings (N, output_dim), not of unit length; S = `image_size`."""

    metadata: Mapping[str, str] = {}

    def __init__(
        self,
        stem: int = 64,
        blocks: Sequence[tuple[int, int]] = BLOCKS,
        last: int = 512,
        output_dim: int = 128,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.preprocessing = replace(IMAGENET_FACE_PREPROCESSING, size=image_size)
        self.conv1 = ConvNormReLU6(3, stem, stride=2)
        self.dw_conv = DepthwiseStem(stem)
        inputs = [stem, *(outputs for _, outputs in blocks)]
        self.features = nn.Sequential(
            *(
                InvertedResidual(inputs[i], hidden, outputs, stride=2 if i in STRIDED_BLOCKS else 1)
                for i, (hidden, outputs) in enumerate(blocks)
            )
        )
        self.map_channels = (*(inputs[end] for end in (*STRIDED_BLOCKS[1:], -1)), last)  # of `maps`
        self.conv2 = ConvNormReLU6(inputs[-1], last, kernel=1)
        self.gdconv = GlobalDepthwise(last, image_size // 16)
        self.conv3 = nn.Conv2d(last, output_dim, 1)
        self.bn = nn.BatchNorm1d(output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.maps(x)[-1])

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each resolution, and the one that the embedding is made of: four of (N, C, H, W)."""
        size = self.preprocessing.size
        assert x.shape[1:] == (3, size, size), f"expected images (N, 3, {size}, {size}), got {tuple(x.shape)}"
        x = self.dw_conv(self.conv1(x))
        maps = []
        for start, end in pairwise((*STRIDED_BLOCKS, len(self.features))):
            x = self.features[start:end](x)
            maps.append(x)
        return [*maps, self.conv2(x)]

    def embedding(self, last: Tensor) -> Tensor:
        """The last of `maps` -> embeddings (N, output_dim)."""
        return self.bn(self.conv3(self.gdconv(last)).flatten(1))

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> FaceTrunk:
        """A new trunk of the widths found in a state dict, under `prefix`."""
        indices = range(count_blocks(tensors, f"{prefix}features."))
        return cls(
            stem=size_of(tensors, f"{prefix}conv1.0.weight"),
            blocks=[
                (size_of(tensors, f"{block}.0.0.weight"), size_of(tensors, f"{block}.2.weight"))
                for block in (f"{prefix}features.{i}.conv" for i in indices)
            ],
            last=size_of(tensors, f"{prefix}conv2.0.weight"),
            output_dim=size_of(tensors, f"{prefix}conv3.weight"),
            image_size=16 * size_of(tensors, f"{prefix}gdconv.depthwise.weight", axis=2),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> FaceTrunk:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        network = build(lambda: cls.shaped_like(tensors), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network
