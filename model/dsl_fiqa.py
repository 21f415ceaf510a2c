"""DSL-FIQA (Chen et al., "Dual-Set Degradation Learning and Landmark-Guided Transformer", CVPR 2024).

How people would rate a crop of a face photograph: tokens of a vision transformer, mixed by transposed attention and
Swin stages, are asked by the degradation features of the same crop; each token gets a score and a weight. Any size of
the family loads. The trunk's head count is not in the shapes: one head for each 64 channels. The same holds for the
decoder, with one head for each 32 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError, build, count_blocks, size_of, with_prefix
from .degradation_encoder import DegradationEncoder
from .preprocessing import DSL_PREPROCESSING, Preprocessing
from .swin import SwinShape, SwinStages

FREQUENCIES = 10  # of the positional encoding of the landmark vector
ENCODED = 1 + 2 * FREQUENCIES  # numbers for each entry of it
TRUNK_HEAD, DECODER_HEAD = 64, 32  # channels of a head
HEAT_SIGMA = 1 / 16  # of a landmark's spot in the light layer, as a share of the crop's side
ENCODER_PREFIX = "encoder."  # of the degradation encoder's keys, in a file that holds both networks

Landmarks = Literal["full", "light", "none"]


@dataclass(frozen=True)
class DslFiqaShape:
    """Every size of the quality network; the defaults are the published ones.

    The trunk's blocks from the middle on, `levels` of them, give the tokens. `landmark_count` is the length of the
    landmark vector (full) or the number of points (light). `spare` keeps the published parameters that are never used.
    """

    image_size: int = 384
    patch: int = 16
    trunk_width: int = 768
    trunk_depth: int = 12
    trunk_classes: int = 1000  # of the trunk's own head, which is never used; 0: none
    levels: int = 4
    tab_blocks: int = 2
    widths: tuple[int, int] = (768, 384)
    depths: tuple[int, ...] = (2, 2)
    heads: int = 4
    swin_mlp: int = 768
    window: int = 4
    decoder_width: int = 256
    decoder_blocks: int = 3
    decoder_mlp: int = 1024
    query_width: int = 256
    landmarks: Landmarks = "full"
    landmark_count: int = 500
    spare: bool = True

    @property
    def grid(self) -> int:
        """Rows of tokens, and columns."""
        return self.image_size // self.patch

    def swin(self, width: int) -> SwinShape:
        """The sizes of one of the two Swin stacks."""
        return SwinShape(width, self.grid, self.depths, self.heads, self.swin_mlp, self.window, self.spare)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> DslFiqaShape:
        """The sizes found in a state dict. Raises CheckpointError when a key that tells one is missing."""
        trunk_width = size_of(tensors, "vit.cls_token", axis=2)
        patch = size_of(tensors, "vit.patch_embed.proj.weight", axis=2)
        grid = round((size_of(tensors, "vit.pos_embed", axis=1) - 1) ** 0.5)
        swin = SwinShape.of_tensors(tensors, "swintransformer1.", grid)
        landmarks, landmark_count = _landmarks_of(tensors)
        return cls(
            image_size=grid * patch,
            patch=patch,
            trunk_width=trunk_width,
            trunk_depth=count_blocks(tensors, "vit.blocks."),
            trunk_classes=size_of(tensors, "vit.head.weight") if "vit.head.weight" in tensors else 0,
            levels=size_of(tensors, "conv1.weight", axis=1) // trunk_width,
            tab_blocks=count_blocks(tensors, "tablock1."),
            widths=(size_of(tensors, "conv1.weight"), size_of(tensors, "conv2.weight")),
            depths=swin.depths,
            heads=swin.heads,
            swin_mlp=swin.mlp,
            window=swin.window,
            decoder_width=size_of(tensors, "conv_decoder.weight"),
            decoder_blocks=count_blocks(tensors, "decoder."),
            decoder_mlp=size_of(tensors, "decoder.0.mlp.fc1.weight"),
            query_width=size_of(tensors, "decoder.0.attn.q.weight", axis=1),
            landmarks=landmarks,
            landmark_count=landmark_count,
            spare="testmlp.0.weight" in tensors,
        )


class DslFiqa(nn.Module):
    """Normalised crops (N, 3, S, S) and their landmarks -> scores (N,), from 0 on.

    `encoder` is the degradation encoder. It is part of a file that our training writes; the published `IQA.pt` needs
    `attach_encoder` with that of `DE.pt`. `landmarks` of a crop are: with "full" the vector (`landmark_count`,) of
    `faces.random_crops.landmark_vector`; with "light" points (`landmark_count`, 2), x and y as shares of the crop's
    side, and (-10, -10) for one that is not seen; with "none" nothing.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, shape: DslFiqaShape | None = None, encoder: DegradationEncoder | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or DslFiqaShape()
        self.preprocessing = replace_fields(DSL_PREPROCESSING, size=shape.image_size)
        tokens, first, second, last = shape.grid**2, *shape.widths, shape.decoder_width
        self.vit = make_trunk(shape)
        self.tablock1 = nn.Sequential(*(TransposedAttention(tokens) for _ in range(shape.tab_blocks)))
        self.conv1 = nn.Conv2d(shape.levels * shape.trunk_width, first, 1)
        self.swintransformer1 = SwinStages(shape.swin(first))
        self.tablock2 = nn.Sequential(*(TransposedAttention(tokens) for _ in range(shape.tab_blocks)))
        self.conv2 = nn.Conv2d(first, second, 1)
        self.swintransformer2 = SwinStages(shape.swin(second))
        self.decoder = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.decoder_blocks))
        self.conv_decoder = nn.Conv2d(second, last, 1)
        if shape.spare:
            self.testmlp = _two_linears(last, last, nn.Identity())
        if shape.landmarks == "full":
            length = shape.landmark_count * ENCODED
            self.embed_mlp = _two_linears(length, tokens, nn.Sigmoid())
        if shape.landmarks == "light":
            self.light_landmarks = LightLandmarks(shape.landmark_count, shape.grid)
        read = last + (shape.landmarks != "none")
        self.fc_score = _two_linears(read, 1, nn.ReLU(), bias=0.5)  # above 0, where the closing ReLU has a gradient
        self.fc_weight = _two_linears(read, 1, nn.Sigmoid())
        self.encoder: DegradationEncoder | None = None
        if encoder is not None:
            self.attach_encoder(encoder)

    def attach_encoder(self, encoder: DegradationEncoder) -> None:
        """Take this degradation encoder. Raises CheckpointError when its width is not what the network reads."""
        if encoder.width != self.shape.query_width:
            raise CheckpointError(
                f"the degradation encoder gives {encoder.width} channels and the quality network reads "
                f"{self.shape.query_width}: take the DE.pt that belongs to this IQA.pt"
            )
        self.encoder = encoder.to(memory_format=torch.channels_last)  # its convolutions are twice as fast on a CPU

    def forward(self, crops: Tensor, landmarks: Tensor | None = None) -> Tensor:
        if self.encoder is None:
            raise CheckpointError("this network has no degradation encoder: give it that of DE.pt")
        return self.score(crops, self.encoder.features(crops), landmarks)

    def score(self, crops: Tensor, degradation: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """The scores (N,) of crops of which the degradation features (N, 8, 12, Q) are known."""
        tokens = self.decoded(crops, degradation)
        scores, weights = (values.float() for values in self.token_scores(tokens, landmarks))  # under autocast too
        return (scores * weights).sum(1) / weights.sum(1)

    def decoded(self, crops: Tensor, degradation: Tensor) -> Tensor:
        """Tokens (N, T, C) of crops, asked by their degradation features (N, 8, 12, Q)."""
        grid = (self.shape.grid, self.shape.grid)
        x = self.tablock1(self.trunk_tokens(crops)).unflatten(2, grid)  # (N, levels * trunk width, G, G)
        x = self.swintransformer1(self.conv1(x))
        x = self.tablock2(x.flatten(2)).unflatten(2, grid)
        x = self.swintransformer2(self.conv2(x))
        x = self.conv_decoder(x).flatten(2).transpose(1, 2)  # (N, T, C)
        queries = degradation.flatten(1, 2)  # (N, 96, Q)
        for block in self.decoder:
            x = block(x, queries)
        return x

    def trunk_tokens(self, crops: Tensor) -> Tensor:
        """The tokens of the trunk's middle blocks as channels of positions, (N, levels * trunk width, T).

        The blocks behind them are not run.
        """
        first = self.shape.trunk_depth // 2
        blocks = list(range(first, first + self.shape.levels))
        tokens = self.vit.forward_intermediates(
            crops, indices=blocks, stop_early=True, output_fmt="NLC", intermediates_only=True
        )
        return torch.cat(tokens, dim=2).transpose(1, 2).contiguous()

    def token_scores(self, tokens: Tensor, landmarks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score, from 0 on, and weight, in (0, 1), of each token: two of (N, T)."""
        if self.shape.landmarks != "none":
            if landmarks is None:
                raise ValueError("the network reads landmarks: give those of each crop")
            tokens = torch.cat([tokens, self.landmark_channel(landmarks).to(tokens.dtype)[..., None]], dim=2)
        return self.fc_score(tokens)[..., 0], self.fc_weight(tokens)[..., 0]

    def landmark_channel(self, landmarks: Tensor) -> Tensor:
        """One number in (0, 1) for each token, (N, T)."""
        if self.shape.landmarks == "light":
            return self.light_landmarks(landmarks)
        return self.embed_mlp(positional_encoding(landmarks))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state dict of both networks, as `from_tensors` reads it."""
        return dict(self.state_dict())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> DslFiqa:
        """From a state dict such as the published `IQA.pt`, in eval mode; with its encoder, where the file holds one.

        Raises CheckpointError when it does not fit, ImportError without timm.
        """
        encoder_tensors = with_prefix(tensors, ENCODER_PREFIX)
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith(ENCODER_PREFIX)}
        shape = DslFiqaShape.of_tensors(own)
        _require_possible(shape)
        network = build(lambda: cls(shape), own)
        if encoder_tensors:
            network.attach_encoder(DegradationEncoder.from_tensors(encoder_tensors))
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network


class TransposedAttention(nn.Module):
    """Attention between channels, for which the T positions are the features: (N, C, T) -> the same shape.

    The published layer reads the transposed result in row-major order as (C, T), which mixes channels and positions.
    """

    def __init__(self, tokens: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(tokens, tokens) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.c_q(x), self.c_k(x), self.c_v(x))
        return x + self.dropout(y.transpose(1, 2).reshape(x.shape))


class DecoderBlock(nn.Module):
    """Tokens (N, T, C) and queries (N, L, Q) -> tokens (N, T, C)."""

    def __init__(self, shape: DslFiqaShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.decoder_width, eps=1e-6)
        self.attn = DegradationAttention(shape)
        self.norm2 = nn.LayerNorm(shape.decoder_width, eps=1e-6)
        self.mlp = ConvolutionalMlp(shape.decoder_width, shape.decoder_mlp, shape.grid)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), queries)
        return x + self.mlp(self.norm2(x))


class DegradationAttention(nn.Module):
    """The degradation features ask, the tokens (N, T, C) answer: (N, T, C).

    There are fewer queries than tokens. Each query is repeated for the tokens that follow one another in its share.
    """

    def __init__(self, shape: DslFiqaShape) -> None:
        super().__init__()
        width = shape.decoder_width
        self.heads = max(1, width // DECODER_HEAD)
        self.q = nn.Linear(shape.query_width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if shape.spare:
            self.task_query = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q = F.interpolate(self.q(queries).transpose(1, 2), size=tokens).transpose(1, 2)  # nearest; (N, T, C)
        q = q.reshape(batch, tokens, self.heads, -1).transpose(1, 2)  # (N, heads, T, C / heads)
        k, v = self.kv(x).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class ConvolutionalMlp(nn.Module):
    """A two-layer MLP with a depth-wise convolution over the square of tokens between the layers."""

    def __init__(self, width: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)})
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        hidden = self.dwconv["dwconv"](hidden).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(hidden))


class LightLandmarks(nn.Module):
    """Points (N, P, 2) -> one number in (0, 1) for each token (N, T), with 2,241 parameters instead of 116 million.

    Ours, not of the paper. Each point makes a Gaussian spot on the square of tokens; two 1x1 convolutions join the P
    maps. Unlike the published layer it knows where in the crop a landmark lies.
    """

    centres: Tensor

    def __init__(self, points: int, grid: int, hidden: int = 32) -> None:
        super().__init__()
        self.join = nn.Sequential(nn.Conv2d(points, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.Sigmoid())
        centres = (torch.arange(grid) + 0.5) / grid  # of the tokens, as shares of the crop's side
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        across, down = ((self.centres - points[..., axis, None]) ** 2 for axis in (0, 1))  # (N, P, G)
        heat = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * HEAT_SIGMA**2))  # (N, P, G, G)
        return self.join(heat).flatten(1)


def positional_encoding(vector: Tensor) -> Tensor:
    """(N, L) -> (N, 21 L): the vector itself, then sine and cosine of it times 1, 2, 4, ..., 512."""
    waves = (wave(2**power * vector) for power in range(FREQUENCIES) for wave in (torch.sin, torch.cos))
    return torch.cat([vector, *waves], dim=1)


def make_trunk(shape: DslFiqaShape) -> Any:
    """A new vision transformer of timm, which is never downloaded. Raises ImportError without timm."""
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("DSL-FIQA's trunk is a vision transformer of timm: pip install timm") from error
    return VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch,
        embed_dim=shape.trunk_width,
        depth=shape.trunk_depth,
        num_heads=max(1, shape.trunk_width // TRUNK_HEAD),
        num_classes=shape.trunk_classes,
    )


def _two_linears(inputs: int, outputs: int, last: nn.Module, bias: float = 0.0) -> nn.Sequential:
    """Linear, ReLU, dropout, linear, `last`; the second linear layer begins with this bias."""
    second = nn.Linear(inputs, outputs)
    nn.init.constant_(second.bias, bias)
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Dropout(0.1), second, last)


def _landmarks_of(tensors: Mapping[str, Tensor]) -> tuple[Landmarks, int]:
    if "embed_mlp.0.weight" in tensors:
        return "full", size_of(tensors, "embed_mlp.0.weight", axis=1) // ENCODED
    if "light_landmarks.join.0.weight" in tensors:
        return "light", size_of(tensors, "light_landmarks.join.0.weight", axis=1)
    return "none", 0


def _require_possible(shape: DslFiqaShape) -> None:
    """Raise CheckpointError for sizes from which no network can be made."""
    problems = {
        f"the trunk's width {shape.trunk_width}": shape.trunk_width % max(1, shape.trunk_width // TRUNK_HEAD),
        f"the decoder's width {shape.decoder_width}": shape.decoder_width % max(1, shape.decoder_width // DECODER_HEAD),
        f"{shape.grid} rows of tokens in windows of {shape.window}": shape.grid % shape.window,
        f"{shape.levels} levels of {shape.trunk_depth} blocks": not (
            0 < shape.levels <= shape.trunk_depth - shape.trunk_depth // 2
        ),
    }
    if found := [name for name, problem in problems.items() if problem]:
        raise CheckpointError(f"no DSL-FIQA network has {', '.join(found)}")
