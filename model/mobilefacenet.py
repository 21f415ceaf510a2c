"""MobileFaceNet (Chen et al., 2018): the trunk, face recognition with it, and CLIB-FIQA's factor network MFN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build, count_blocks, size_of
from .preprocessing import FACE_PREPROCESSING, Preprocessing

HEADS = {"blur": 3, "expression": 2, "illumination": 2, "occlusion": 3, "pose": 2}  # classifier1 … classifier5


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, and a PReLU unless `activation` is off."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
        padded: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu: nn.Module = nn.PReLU(outputs) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class DepthWise(nn.Module):
    """Widen, filter each channel, narrow; with stride 1 the input is added."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.conv = ConvBlock(inputs, hidden)
        self.conv_dw = ConvBlock(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = ConvBlock(hidden, outputs, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.residual else y


class Residual(nn.Module):
    """A stack of `DepthWise` blocks that keep resolution and width."""

    def __init__(self, channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(DepthWise(channels, hidden, channels, stride=1) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@dataclass(frozen=True)
class TrunkShape:
    """The sizes of a MobileFaceNet; the defaults are the published ones."""

    widths: tuple[int, int, int] = (64, 128, 128)  # after conv_23, conv_34, conv_45
    blocks: tuple[int, int, int] = (4, 6, 2)  # in conv_3, conv_4, conv_5
    down_hidden: tuple[int, int, int] = (128, 256, 512)  # inside conv_23, conv_34, conv_45
    hidden: tuple[int, int, int] = (128, 256, 256)  # inside conv_3, conv_4, conv_5
    stem: int = 64
    last: int = 512


class MobileFaceNet(nn.Module):
    """Normalised aligned faces (N, 3, 112, 112) -> feature maps (N, last, 7, 7)."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        width_3, width_4, width_5 = shape.widths
        self.conv1 = ConvBlock(3, shape.stem, kernel=3, stride=2)
        self.conv2_dw = ConvBlock(shape.stem, shape.stem, kernel=3, groups=shape.stem)
        self.conv_23 = DepthWise(shape.stem, shape.down_hidden[0], width_3, stride=2)
        self.conv_3 = Residual(width_3, shape.hidden[0], shape.blocks[0])
        self.conv_34 = DepthWise(width_3, shape.down_hidden[1], width_4, stride=2)
        self.conv_4 = Residual(width_4, shape.hidden[1], shape.blocks[1])
        self.conv_45 = DepthWise(width_4, shape.down_hidden[2], width_5, stride=2)
        self.conv_5 = Residual(width_5, shape.hidden[2], shape.blocks[2])
        self.conv_6_sep = ConvBlock(width_5, shape.last)
        self.preprocessing = FACE_PREPROCESSING
        self.map_channels = (*shape.widths, shape.last)  # of `maps`

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each resolution, and the one that `forward` gives: four of (N, C, H, W)."""
        first = self.conv_3(self.conv_23(self.conv2_dw(self.conv1(x))))
        second = self.conv_4(self.conv_34(first))
        third = self.conv_5(self.conv_45(second))
        return [first, second, third, self.conv_6_sep(third)]

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> MobileFaceNet:
        """A new trunk of the widths and depths found in a state dict, under `prefix`."""
        return cls(_trunk_shape(tensors, prefix))


class MobileFaceNetEmbedding(MobileFaceNet):
    """MobileFaceNet with its global depthwise convolution, which has one weight for each position of each channel.

    Normalised aligned faces (N, 3, S, S) -> embeddings of unit length (N, D); S = `image_size`.
    """

    def __init__(self, shape: TrunkShape = TrunkShape(), embedding: int = 512, image_size: int = 112) -> None:
        super().__init__(shape)
        self.preprocessing = replace(FACE_PREPROCESSING, size=image_size)
        self.conv_6_dw = ConvBlock(
            shape.last, shape.last, kernel=image_size // 16, groups=shape.last, activation=False, padded=False
        )
        self.linear = nn.Linear(shape.last, embedding, bias=False)
        self.bn = nn.BatchNorm1d(embedding)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_6_dw(self.maps(x)[-1]).flatten(1)
        return F.normalize(self.bn(self.linear(features)), dim=1)

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> MobileFaceNetEmbedding:
        """A new network of the sizes found in a state dict, under `prefix`."""
        return cls(
            _trunk_shape(tensors, prefix),
            embedding=size_of(tensors, f"{prefix}linear.weight"),
            image_size=16 * size_of(tensors, f"{prefix}conv_6_dw.conv.weight", axis=2),
        )

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> MobileFaceNetEmbedding:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        network = build(lambda: cls.shaped_like(tensors), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network


class FactorNetwork(nn.Module):
    """MFN: normalised aligned faces (N, 3, 112, 112) -> logits of five factors, one head for each.

    The classes are WIDER FACE's, where 0 is the harmless one, unlike the axes of `prompts.py`: blur none, normal,
    heavy · expression typical, exaggerated · illumination normal, extreme · occlusion none, partial, heavy · pose
    typical, atypical. CLIB-FIQA's labels use expression, illumination and occlusion: 1 for class 0, else 0.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, trunk: TrunkShape = TrunkShape(), head_width: int = 256) -> None:
        super().__init__()
        self.preprocessing = FACE_PREPROCESSING
        self.base_backbone = MobileFaceNet(trunk)
        for index, classes in enumerate(HEADS.values(), start=1):
            self.add_module(f"classifier{index}", _head(trunk.last, head_width, classes))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by factor: blur (N, 3), expression (N, 2), illumination (N, 2), occlusion (N, 3), pose (N, 2)."""
        features = self.base_backbone(x).mean(dim=(2, 3))
        return {name: self.get_submodule(f"classifier{i}")(features) for i, name in enumerate(HEADS, start=1)}

    def probabilities(self, x: Tensor) -> dict[str, Tensor]:
        """Like `forward`, after a float32 softmax."""
        return {name: logits.float().softmax(dim=-1) for name, logits in self(x).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> FactorNetwork:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        head_width = size_of(tensors, "classifier1.0.weight")
        network = build(lambda: cls(_trunk_shape(tensors, "base_backbone."), head_width), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, FACE_PREPROCESSING)
        return network


def _head(inputs: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def _trunk_shape(tensors: Mapping[str, Tensor], prefix: str) -> TrunkShape:
    def sizes(pattern: str, *names: str) -> tuple[int, int, int]:
        first, second, third = (size_of(tensors, prefix + pattern.format(name)) for name in names)
        return first, second, third

    down, same = ("conv_23", "conv_34", "conv_45"), ("conv_3", "conv_4", "conv_5")
    blocks_3, blocks_4, blocks_5 = (count_blocks(tensors, f"{prefix}{name}.model.") for name in same)
    return TrunkShape(
        widths=sizes("{}.project.conv.weight", *down),
        blocks=(blocks_3, blocks_4, blocks_5),
        down_hidden=sizes("{}.conv.conv.weight", *down),
        hidden=sizes("{}.model.0.conv.conv.weight", *same),
        stem=size_of(tensors, f"{prefix}conv1.conv.weight"),
        last=size_of(tensors, f"{prefix}conv_6_sep.conv.weight"),
    )
