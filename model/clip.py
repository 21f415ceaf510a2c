"""CLIP's image and text towers (Radford et al., 2021), with the parameter names of OpenAI's RN50.

The image tower is a ModifiedResNet (three-layer stem, average pooling instead of strides, attention pooling) or a face
recognition network, read at its end (`FaceTrunk`) or at all its levels (`MultiLevelTower`); the text tower is a causal
transformer, and may be absent. Sizes come from the shapes of a state dict.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError, build, count_blocks, size_of
from .face_trunk import FaceTrunk
from .multi_level import MultiLevelTower
from .preprocessing import CLIP_PREPROCESSING, Preprocessing

HEAD_WIDTH = 64  # the published sizes have one attention head per 64 channels
TEXT_TOWER_KEYS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; a stride is an average pool, on the shortcut too, so that no pixel is skipped."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = pool
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        if stride > 1 or inputs != outputs:
            shortcut = {"pool": pool, "0": nn.Conv2d(inputs, outputs, 1, bias=False), "1": nn.BatchNorm2d(outputs)}
            self.downsample: nn.Module = nn.Sequential(OrderedDict(shortcut))
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self.pool(y)))
        return F.relu(y + self.downsample(x), inplace=True)


class AttentionPool(nn.Module):
    """One query, the mean of the feature map, attends to the mean and all positions; the answer is projected."""

    def __init__(self, positions: int, channels: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = _normal(1 + positions, channels, std=channels**-0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, outputs)
        for projection in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, outputs)."""
        x = x.flatten(2).transpose(1, 2)  # (N, H * W, channels)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positional_embedding
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        return self.c_proj(_attend(query, key, value, self.heads).squeeze(1))


class ModifiedResNet(nn.Module):
    """CLIP's residual network: (N, 3, S, S) -> (N, output_dim), S = `image_size`, a multiple of 32.

    `layers` counts the blocks of the four stages, `width` the channels of the stem; the last stage has 32 * width.
    """

    def __init__(self, layers: tuple[int, ...], width: int, output_dim: int, heads: int, image_size: int = 224) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.preprocessing = replace(CLIP_PREPROCESSING, size=image_size)
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], stride=2)
        self.attnpool = AttentionPool((image_size // 32) ** 2, 32 * width, output_dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        size = self.preprocessing.size
        assert x.shape[1:] == (3, size, size), f"expected images (N, 3, {size}, {size}), got {tuple(x.shape)}"
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))
        return self.attnpool(x)


class CausalAttention(nn.Module):
    """Multi-head self-attention to the left, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = _normal(3 * width, width, std=width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(_attend(query, key, value, self.heads, is_causal=True))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation with which CLIP was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Pre-norm transformer block: attention, then a four times wider perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CausalAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The stack of the text tower's blocks: (N, L, width) -> (N, L, width)."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(TextBlock(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


@dataclass(frozen=True)
class TextShape:
    """The sizes of a text tower; the defaults are those of RN50."""

    width: int = 512
    layers: int = 12
    heads: int = 8
    context_length: int = 77
    vocabulary: int = 49_408


ImageTower = ModifiedResNet | FaceTrunk | MultiLevelTower


class CLIP(nn.Module):
    """An image tower and, unless `text` is None, a text tower that maps into the same space."""

    def __init__(self, visual: ImageTower, text: TextShape | None) -> None:
        super().__init__()
        self.text_shape = text
        if text:
            self.positional_embedding = _normal(text.context_length, text.width, std=0.01)
            self.text_projection = _normal(text.width, visual.output_dim, std=text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual = visual
        if text:
            self.transformer = Transformer(text.width, text.layers, text.heads)
            self.token_embedding = nn.Embedding(text.vocabulary, text.width)
            self.ln_final = nn.LayerNorm(text.width)
            nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the image tower expects."""
        return self.visual.preprocessing

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> features (N, D), not of unit length."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L), L up to the context length -> features (N, D), not of unit length.

        Tokens cut behind the longest sentence give the same features as tokens padded to the context length: no
        token sees what comes after it. Raises ValueError when there is no text tower.
        """
        if self.text_shape is None:
            raise ValueError("this checkpoint holds no text tower: only images can be encoded")
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        ends = tokens.argmax(dim=-1)  # the end token has the highest code
        return x[torch.arange(len(x), device=x.device), ends] @ self.text_projection

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> CLIP:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit.

        Head counts, which shapes do not hold, are `text_heads` and `vision_heads` of the metadata, else CLIP's rule.
        """
        return build(lambda: cls(_visual_of(tensors, metadata or {}), _text_of(tensors, metadata or {})), tensors)


def _normal(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention in `heads` groups of channels: query (N, Q, C), key and value (N, L, C)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2).flatten(2)


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """The first block changes channels and resolution, the others keep them."""
    rest = (Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


def _visual_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ImageTower:
    if "visual.trunk.gdconv.depthwise.weight" in tensors:
        return MultiLevelTower.shaped_like(tensors, "visual.")
    if "visual.gdconv.depthwise.weight" in tensors:
        return FaceTrunk.shaped_like(tensors, "visual.")
    layers = tuple(count_blocks(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    if 0 in layers:
        raise CheckpointError(f"expected blocks in all of visual.layer1 … visual.layer4, found {layers}")
    width = size_of(tensors, "visual.layer1.0.conv1.weight")
    positions = size_of(tensors, "visual.attnpool.positional_embedding") - 1
    output_dim = size_of(tensors, "visual.attnpool.c_proj.weight")
    heads = int(metadata.get("vision_heads", max(1, 32 * width // HEAD_WIDTH)))
    return ModifiedResNet(layers, width, output_dim, heads, image_size=32 * round(positions**0.5))


def _text_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TextShape | None:
    if not any(key.startswith(TEXT_TOWER_KEYS) for key in tensors):
        return None
    vocabulary, width = (size_of(tensors, "token_embedding.weight", axis) for axis in (0, 1))
    return TextShape(
        width=width,
        layers=count_blocks(tensors, "transformer.resblocks."),
        heads=int(metadata.get("text_heads", max(1, width // HEAD_WIDTH))),
        context_length=size_of(tensors, "positional_embedding"),
        vocabulary=vocabulary,
    )
