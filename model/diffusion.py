"""DifFIQA's denoising diffusion model: its UNet and its Gaussian diffusion process.

Babnik, Peer and Štruc, "DifFIQA: Face Image Quality Assessment Using Denoising Diffusion Probabilistic Models", IJCB
2023; diffusion: Ho et al. 2020; cosine schedule: Nichol and Dhariwal 2021; DDIM: Song et al. 2021.

The UNet is that of an OLD release of the library denoising-diffusion-pytorch: convolutions with standardised weights,
norms over the channels with a gain only, linear attention, and cosine attention with a scale of 10. Today's release
of that library has other layers under other keys, so it cannot load these weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build, count_blocks, size_of, with_prefix
from .preprocessing import FACE_PREPROCESSING, Preprocessing

EPSILON = 1e-5
GROUPS = 8
HEAD_WIDTH = 32  # channels of one attention head
COSINE_SCALE = 10
BLEND_STEPS = 100  # from this step on, the forward process shows the low-quality image only


class WeightStandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 in every output channel (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)

    def standardised(self) -> Tensor:
        """The weights that are applied."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) * (variance + EPSILON).rsqrt()


def standardise_once(network: nn.Module) -> None:
    """Give all such convolutions of `network` their standardised weights for good, in place, which saves the work of
    each call. The outputs stay the same bit for bit. The network is then for inference only, and not to be saved."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WeightStandardisedConv2d):
                kernel = child.weight.shape[2]
                plain = nn.Conv2d(child.in_channels, child.out_channels, kernel, padding=kernel // 2)
                plain.weight, plain.bias = nn.Parameter(child.standardised(), requires_grad=False), child.bias
                setattr(parent, name, plain)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position, with a gain and without a bias: (N, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)  # torch.var_mean over the channels takes ten times as long on a CPU
        return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt() * self.g


class TimeEncoding(nn.Module):
    """Time steps (N,) -> sines and cosines (N, width) of frequencies from 1 down to 1/10000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, time: Tensor) -> Tensor:
        half = self.width // 2
        frequencies = torch.exp(torch.arange(half, device=time.device) * -(math.log(10000) / (half - 1)))
        angles = time[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Convolution, group norm, an optional scale and shift for each channel, SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = WeightStandardisedConv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks, the first scaled and shifted by the time embedding, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * outputs))
        self.block1 = Block(inputs, outputs)
        self.block2 = Block(outputs, outputs)
        self.res_conv: nn.Module = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the number of positions: (N, C, H, W) -> the same.

    With the maps of a head q = softmax(Wq x), k = softmax(Wk x) and v = Wv x, the published code computes
    Wo ((v k^T) q). Wv and Wo are linear, so Wo Wv can be applied to x k^T, which is small: v and the heads' outputs,
    the largest maps of the network, are never made.

    It works in float32 under autocast too: divided by the number of positions, its sums are too small for float16.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * HEAD_WIDTH, channels, 1), ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().flatten(2)  # (N, C, positions)
            to_queries, to_keys, to_values = self.to_qkv.weight[:, :, 0, 0].chunk(3)  # (heads * 32, C) each
            queries, keys = (
                torch.bmm(weight.expand(len(x), -1, -1), flat).unflatten(1, (self.heads, HEAD_WIDTH))
                for weight in (to_queries, to_keys)
            )
            queries = queries.softmax(dim=2) * HEAD_WIDTH**-0.5  # over the channels of the head
            keys = keys.softmax(dim=3)  # over the positions
            context = torch.bmm(keys.flatten(1, 2), flat.transpose(1, 2)) / flat.shape[2]  # (N, heads * 32, C)
            context = context.unflatten(1, (self.heads, HEAD_WIDTH)).transpose(2, 3)  # (N, heads, C, 32)
            values = to_values.unflatten(0, (self.heads, HEAD_WIDTH))  # (heads, 32, C)
            project: Any = self.to_out[0]
            outputs = project.weight[:, :, 0, 0].unflatten(1, (self.heads, HEAD_WIDTH)).transpose(0, 1)
            mixed = (outputs @ values @ context).transpose(1, 2).flatten(2)  # (N, C, heads * 32)
            found = torch.bmm(mixed, queries.flatten(1, 2)) + project.bias[:, None]
            return self.to_out[1](found.unflatten(2, x.shape[2:])).to(x.dtype)


class CosineAttention(nn.Module):
    """Attention between all positions, of queries and keys of unit length: (N, C, H, W) -> the same.

    As published, each channel has unit length over the positions, instead of each position over the channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(heads * HEAD_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = _heads(self.to_qkv(x), self.heads)
        queries, keys = F.normalize(queries, dim=3), F.normalize(keys, dim=3)
        weights = (queries.transpose(2, 3) @ keys * COSINE_SCALE).softmax(dim=3)  # (N, heads, positions, positions)
        found = values @ weights.transpose(2, 3)  # (N, heads, 32, positions)
        return self.to_out(found.reshape(len(x), -1, *x.shape[2:]))


class PreNorm(nn.Module):
    """A channel norm before `fn`."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Residual(nn.Module):
    """The input is added to what `fn` makes of it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Unet(nn.Module):
    """Noisy images (N, channels, S, S) and time steps (N,) int64 -> denoised images of the same shape.

    S must be a multiple of 2 to the power of the number of levels - 1. The width of level i is `width` times
    `multiples[i]`; each is a multiple of 8.
    """

    def __init__(
        self, width: int = 128, multiples: Sequence[int] = (1, 2, 4, 8), channels: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        widths = [width, *(width * multiple for multiple in multiples)]
        time_width, last = 4 * width, widths[-1]
        self.init_conv = nn.Conv2d(channels, width, 7, padding=3)
        self.time_mlp = nn.Sequential(
            TimeEncoding(width), nn.Linear(width, time_width), nn.GELU(), nn.Linear(time_width, time_width)
        )
        levels = list(pairwise(widths))
        self.downs = nn.ModuleList(
            nn.ModuleList([
                ResnetBlock(inputs, inputs, time_width),
                ResnetBlock(inputs, inputs, time_width),
                Residual(PreNorm(inputs, LinearAttention(inputs, heads))),
                _same_size(inputs, outputs) if level == len(levels) - 1 else nn.Conv2d(inputs, outputs, 4, 2, 1),
            ])
            for level, (inputs, outputs) in enumerate(levels)
        )  # fmt: skip
        self.ups = nn.ModuleList(
            nn.ModuleList([
                ResnetBlock(inputs + outputs, outputs, time_width),
                ResnetBlock(inputs + outputs, outputs, time_width),
                Residual(PreNorm(outputs, LinearAttention(outputs, heads))),
                _same_size(outputs, inputs) if level == 0
                else nn.Sequential(nn.Upsample(scale_factor=2), _same_size(outputs, inputs)),
            ])
            for level, (inputs, outputs) in reversed(list(enumerate(levels)))
        )  # fmt: skip
        self.mid_block1 = ResnetBlock(last, last, time_width)
        self.mid_attn = Residual(PreNorm(last, CosineAttention(last, heads)))
        self.mid_block2 = ResnetBlock(last, last, time_width)
        self.final_res_block = ResnetBlock(2 * width, width, time_width)
        self.final_conv = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = first = self.init_conv(x)
        time = self.time_mlp(time)
        skipped = []  # the maps that the way up takes, last first
        downs: Any = self.downs
        ups: Any = self.ups
        for block1, block2, attention, shrink in downs:
            x = block1(x, time)
            skipped.append(x)
            x = attention(block2(x, time))
            skipped.append(x)
            x = shrink(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time)), time)
        for block1, block2, attention, enlarge in ups:
            x = block1(torch.cat([x, skipped.pop()], dim=1), time)
            x = block2(torch.cat([x, skipped.pop()], dim=1), time)
            x = enlarge(attention(x))
        return self.final_conv(self.final_res_block(torch.cat([x, first], dim=1), time))

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> Unet:
        """A new UNet of the sizes found in a state dict, under `prefix`."""
        width = size_of(tensors, f"{prefix}init_conv.weight")
        levels = range(count_blocks(tensors, f"{prefix}downs."))
        return cls(
            width,
            [size_of(tensors, f"{prefix}downs.{level}.3.weight") // width for level in levels],
            channels=size_of(tensors, f"{prefix}init_conv.weight", axis=1),
            heads=size_of(tensors, f"{prefix}mid_attn.fn.fn.to_qkv.weight") // (3 * HEAD_WIDTH),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Unet:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(lambda: cls.shaped_like(tensors), tensors)


class GaussianDiffusion(nn.Module):
    """The diffusion process around a UNet that predicts the clean image: images (N, 3, S, S) in [-1, 1].

    Time step t counts from 0; the noise grows with t.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, model: Unet, timesteps: int = 1000, image_size: int = 112) -> None:
        super().__init__()
        self.preprocessing = replace(FACE_PREPROCESSING, size=image_size)
        self.model = model
        for name, values in _schedule(timesteps).items():
            self.register_buffer(name, values.float())

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Noisy images (N, 3, S, S) at time steps (N,) -> the clean images, not clipped."""
        return self.model(x, time)

    def q_sample(self, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """The forward process: images (N, 3, S, S) with the noise of their time step (N,)."""
        return self._at("sqrt_alphas_cumprod", time) * x + self._at("sqrt_one_minus_alphas_cumprod", time) * noise

    def predictions(self, x: Tensor, time: Tensor, clip: bool = True) -> tuple[Tensor, Tensor]:
        """Noisy images at time steps (N,) -> the clean images, clipped to [-1, 1], and the noise that this implies."""
        clean = self.model(x, time)
        clean = clean.clamp(-1, 1) if clip else clean
        noise = self._at("sqrt_recip_alphas_cumprod", time) * x - clean
        return clean, noise / self._at("sqrt_recipm1_alphas_cumprod", time)

    def reconstruct(self, x: Tensor, time: int, noises: Iterator[Tensor], steps: int = 6) -> Tensor:
        """Images (N, 3, S, S) with the noise of `time` -> clean images, by DDIM with eta = 1.

        `noises` gives standard normal noise of the shape of `x`, `steps` - 1 times.
        """
        for now, after in pairwise(ddim_times(time, steps)):
            clean, noise = self.predictions(x, torch.full((len(x),), now, device=x.device))
            if after < 0:
                return clean
            alpha, alpha_after = self._of("alphas_cumprod")[now], self._of("alphas_cumprod")[after]
            variance = (1 - alpha / alpha_after) * (1 - alpha_after) / (1 - alpha)
            x = (
                alpha_after.sqrt() * clean
                + (1 - alpha_after - variance).sqrt() * noise
                + variance.sqrt() * next(noises).to(x)
            )
        raise AssertionError("the last time step is below 0")

    @staticmethod
    def blend(low: Tensor, high: Tensor, time: Tensor) -> Tensor:
        """What takes the noise in training: images of high quality that fade into those of low quality with time.

        `low` and `high` are (N, 3, S, S), `time` is (N,), from 0 (high only) to 100 (low only).
        """
        share = torch.sin(math.pi / 2 * time / BLEND_STEPS)[:, None, None, None].to(high.dtype)
        return (1 - share) * high + share * low

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> GaussianDiffusion:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit.

        The image size is not in the shapes: it is the metadata's, else 112.
        """
        unet = with_prefix(tensors, "model.")
        network = build(lambda: cls(Unet.shaped_like(unet), size_of(tensors, "betas")), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _at(self, name: str, time: Tensor) -> Tensor:
        return self._of(name)[time][:, None, None, None]


def ddim_times(time: int, steps: int) -> list[int]:
    """The time steps of DDIM from `time` - 1 to -1, as published: equal distances, rounded towards zero.

    Six steps from time 5 are 4, 3, 2, 1, 0, 0, -1. Step 0 is run twice, because -1 + 5/6 is rounded to 0. From 0 to 0
    no noise is added and the image stays the same but for rounding (1e-3), so five steps do the same work for less.
    """
    return torch.linspace(-1, time - 1, steps + 1).int().tolist()[::-1]


def _schedule(timesteps: int) -> dict[str, Tensor]:
    """The cosine schedule (s = 0.008) and what follows from it, by the published names: each (timesteps,) float64."""
    s = 0.008
    angles = (torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps + s) / (1 + s)
    remaining = (angles * math.pi / 2).cos() ** 2
    betas = (1 - remaining[1:] / remaining[:-1]).clip(0, 0.999)
    alphas = 1 - betas
    product = alphas.cumprod(dim=0)
    before = F.pad(product[:-1], (1, 0), value=1.0)
    variance = betas * (1 - before) / (1 - product)
    return {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - product),
        "p2_loss_weight": torch.ones(timesteps, dtype=torch.float64),
    }


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3 * heads * 32, H, W) -> queries, keys, values (N, heads, 32, H * W)."""
    queries, keys, values = (part.reshape(len(qkv), heads, HEAD_WIDTH, -1) for part in qkv.chunk(3, dim=1))
    return queries, keys, values


def _same_size(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
