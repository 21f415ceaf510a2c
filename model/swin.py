"""Swin transformer blocks at one resolution (Liu et al., ICCV 2021), as DSL-FIQA arranges them.

Each stage ends in a convolution, and its output is added to its input with a small fixed weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import count_blocks, size_of

STAGE_WEIGHT = 0.13  # of a stage's output, beside its input
BLOCKED = -100.0  # added to the logit of two positions of a shifted window that are no neighbours in the picture


@dataclass(frozen=True)
class SwinShape:
    """Sizes of a stack of stages. `grid` is the side of the square of tokens, a multiple of `window`."""

    width: int
    grid: int
    depths: tuple[int, ...] = (2, 2)
    heads: int = 4
    mlp: int = 768
    window: int = 4
    spare: bool = False  # whether there is the convolution `downsample`, which is in published files and never used

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, grid: int) -> SwinShape:
        """The sizes found in a state dict, under `prefix`."""
        stages = range(count_blocks(tensors, f"{prefix}layers."))
        block = f"{prefix}layers.0.blocks.0."
        return cls(
            width=size_of(tensors, f"{block}norm1.weight"),
            grid=grid,
            depths=tuple(count_blocks(tensors, f"{prefix}layers.{stage}.blocks.") for stage in stages),
            heads=size_of(tensors, f"{block}attn.relative_position_bias_table", axis=1),
            mlp=size_of(tensors, f"{block}mlp.fc1.weight"),
            window=round(size_of(tensors, f"{block}attn.relative_position_index") ** 0.5),
            spare=f"{prefix}downsample.weight" in tensors,
        )


class SwinStages(nn.Module):
    """(N, C, G, G) -> the same shape."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        assert shape.grid % shape.window == 0, f"a grid of {shape.grid} does not divide into windows of {shape.window}"
        self.layers = nn.ModuleList(SwinStage(shape, depth) for depth in shape.depths)
        if shape.spare:
            self.downsample = nn.Conv2d(shape.width, shape.width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.layers:
            x = x + STAGE_WEIGHT * stage(x)
        return x


class SwinStage(nn.Module):
    """Blocks, every second with shifted windows, then a 3x3 convolution and ReLU. (N, C, G, G) -> the same shape."""

    def __init__(self, shape: SwinShape, depth: int) -> None:
        super().__init__()
        shifts = (shape.window // 2 if index % 2 else 0 for index in range(depth))
        self.blocks = nn.ModuleList(SwinBlock(shape, shift) for shift in shifts)
        self.conv = nn.Conv2d(shape.width, shape.width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.conv(x.permute(0, 3, 1, 2)))


class SwinBlock(nn.Module):
    """Attention within windows and a two-layer MLP, each on normalised tokens and added to its input: (N, G, G, C)."""

    def __init__(self, shape: SwinShape, shift: int) -> None:
        super().__init__()
        self.shift, self.window = shift, shape.window
        self.norm1 = nn.LayerNorm(shape.width)
        self.attn = WindowAttention(shape)
        self.norm2 = nn.LayerNorm(shape.width)
        self.mlp = Mlp(shape.width, shape.mlp)
        self.register_buffer("attn_mask", shift_mask(shape.grid, shape.window, shift) if shift else None)

    def forward(self, x: Tensor) -> Tensor:
        grid, shift = x.shape[1], self.shift
        y = self.norm1(x)
        if shift:
            y = y.roll((-shift, -shift), dims=(1, 2))
        y = from_windows(self.attn(to_windows(y, self.window), self.attn_mask), self.window, grid)
        if shift:
            y = y.roll((shift, shift), dims=(1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Attention among the L = window^2 tokens of each window (B, L, C), with a bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        self.heads = shape.heads
        table = torch.empty((2 * shape.window - 1) ** 2, shape.heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", relative_positions(shape.window))
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, C / heads)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, L, L)
        if mask is not None:  # (windows, L, L); the windows of a picture follow one another
            bias = (bias + mask[:, None]).repeat(batch // len(mask), 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(batch, -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def to_windows(x: Tensor, window: int) -> Tensor:
    """(N, G, G, C) -> (N * windows, window^2, C), the windows of a picture row by row."""
    batch, grid, _, width = x.shape
    count = grid // window
    x = x.view(batch, count, window, count, window, width).transpose(2, 3)
    return x.reshape(-1, window * window, width)


def from_windows(x: Tensor, window: int, grid: int) -> Tensor:
    """The inverse of `to_windows`."""
    count = grid // window
    x = x.view(-1, count, count, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, grid, grid, x.shape[-1])


def relative_positions(window: int) -> Tensor:
    """The row of the bias table for each pair of positions of a window, int64 (L, L)."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """What is added to the logits of each shifted window, (windows, L, L): 0 among neighbours, else BLOCKED.

    After the shift, windows at the border hold parts of the picture that lie at opposite sides of it.
    """
    line = torch.arange(grid)
    part = (line >= grid - window).long() + (line >= grid - shift).long()
    region = (3 * part[:, None] + part).view(1, grid, grid, 1)
    region = to_windows(region, window)[..., 0]  # (windows, L)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, BLOCKED)
