"""DSL-FIQA on one picture: 20 crops as a batch against the published procedure, crop by crop, in one run.

    python benchmarks/dsl_fiqa.py                      the published sizes, random weights
    python benchmarks/dsl_fiqa.py --crops 4 --batches 4
    python benchmarks/dsl_fiqa.py --preset small       the small network, on pictures of 171x171

"published" does for each crop what the published test script does, in plain PyTorch in fp32: the crop is normalised,
its landmark vector is made and brought to the network, the degradation encoder runs with its projection, which is not
read, and with batch norms of their own; all twelve blocks of the trunk and its head run; attention is a product, a
softmax and a product. "batch of N" is `scoring/dsl_fiqa.py`: N crops at a time, in fp32 and in bf16.

The measurements take turns, and the least time of each counts, by the clock and in seconds of all cores, which other
programs on the machine disturb less. The share of the peak is that of the fastest matrix product of 2048x2048 in the
same precision and the same run, both by seconds of the cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from command_line import keep_freed_memory, positive
from faces.random_crops import landmarks_for
from methods.dsl_fiqa.config import QUALITY_PRESETS, QualityConfig
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa, DslFiqaShape
from model.fast import PRECISIONS
from model.fast_dsl_fiqa import accelerate_dsl_fiqa, product
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
    """Attention as three operations, with the whole table of weights in memory."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ v


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Everywhere, the trunk included."""
    fast = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fast


@contextmanager
def published_arithmetic(network: DslFiqa) -> Iterator[None]:
    """All blocks of the trunk and its head run, and attention is plain."""
    partial_run = network.vit.forward_intermediates

    def whole_run(x: Tensor, **options: object) -> object:
        final, tokens = partial_run(x, **{**options, "stop_early": False, "intermediates_only": False})
        network.vit.forward_head(final)
        return tokens

    network.vit.forward_intermediates = whole_run
    try:
        with without_fused_attention():
            yield
    finally:
        del network.vit.forward_intermediates


def peaks() -> dict[str, float]:
    """FLOP of a large matrix product in a second of a core: of PyTorch in fp32, and of oneDNN in both precisions."""
    a = torch.randn(2048, 2048)
    b = a.bfloat16()
    products = {"PyTorch fp32": lambda: a @ a, "fp32": lambda: product(a, a), "bf16": lambda: product(b, b)}
    found = {}
    for name, run in products.items():
        times = []
        for _ in range(5):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
        found[name] = 2 * 2048**3 / min(times)
    return found


class Picture(NamedTuple):
    """A picture as floats (3, H, W) in [0, 1], its landmarks (P, 2), and the corners (K, 2) of its crops."""

    pixels: Tensor
    points: np.ndarray
    corners: np.ndarray

    def crop(self, index: int, size: int) -> Tensor:
        """Normalised, (1, 3, size, size)."""
        top, left = self.corners[index]
        return ((self.pixels[:, top : top + size, left : left + size] - 0.5) / 0.5)[None].contiguous()


def published(network: DslFiqa, picture: Picture) -> Tensor:
    """The score of a picture, crop by crop."""
    assert network.encoder is not None, "it was made with one"
    scores = []
    with published_arithmetic(network):
        for index, corner in enumerate(picture.corners):
            crop = picture.crop(index, network.shape.image_size)
            landmarks = torch.from_numpy(landmarks_for(network.shape, picture.points, corner)[None])
            degradation, _ = network.encoder(crop)
            scores.append(network.score(crop, degradation, landmarks))
    return torch.cat(scores).mean()


def in_batches(network: DslFiqa, picture: Picture, size: int, dtype: torch.dtype) -> Tensor:
    """The score of a picture, `size` crops at a time."""
    crops = torch.cat([picture.crop(index, network.shape.image_size) for index in range(len(picture.corners))])
    vectors = [landmarks_for(network.shape, picture.points, corner) for corner in picture.corners]
    pairs = zip(crops.split(size), torch.from_numpy(np.stack(vectors)).split(size), strict=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        return torch.cat([network(*pair) for pair in pairs]).mean()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("published", "small"), default="published")
    parser.add_argument("--crops", type=positive, default=20, help="of the picture (default: 20)")
    parser.add_argument("--batches", type=positive, nargs="+", default=[4, 20], help="crops at a time")
    parser.add_argument("--rounds", type=positive, default=2)
    add_results_option(parser)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    small = args.preset == "small"
    shape = QualityConfig(**QUALITY_PRESETS["small"]).shape(64) if small else DslFiqaShape()
    network = DslFiqa(shape, DegradationEncoder((16, 32, 64) if small else (64, 128, 256))).eval()
    fast = {name: accelerate_dsl_fiqa(deepcopy(network), PRECISIONS[name]) for name in ("fp32", "bf16")}
    network.encoder.to(memory_format=torch.contiguous_format)
    side, rng = shape.image_size * 4 // 3, np.random.default_rng(0)
    corners = rng.integers(0, side - shape.image_size + 1, (args.crops, 2))
    picture = Picture(torch.rand(3, side, side), rng.uniform(0, side, (68, 2)), corners)

    runs: dict[str, Callable[[], Tensor]] = {"published": lambda: published(network, picture)}
    precisions = {"published": "fp32"}
    for precision, one in fast.items():
        for size in (1, *args.batches):
            name = f"{precision}, batch of {size}"
            runs[name] = partial(in_batches, one, picture, size, PRECISIONS[precision])
            precisions[name] = precision
    scores, times, work = {}, dict.fromkeys(runs, float("inf")), dict.fromkeys(runs, float("inf"))
    for _ in range(args.rounds):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            scores[name] = run().item()
            times[name] = min(times[name], time.perf_counter() - began)
            work[name] = min(work[name], time.process_time() - used)
    with without_fused_attention(), FlopCounterMode(display=False) as counter:  # it does not know the fused one
        in_batches(network, picture._replace(corners=corners[:1]), 1, torch.float32)
    flop, fastest = counter.get_total_flops() * args.crops, peaks()
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in fastest.items())
    threads = torch.get_num_threads()
    what = (
        f"A picture of {args.crops} crops, {args.preset} sizes: {flop / 1e12:.2f} TFLOP, {threads} threads; "
        f"GFLOP/s of a core in a large product: {rates}"
    )
    columns = [
        Column("arithmetic"),
        Column("seconds", "{:.2f}", "min"),
        Column("times as fast as published", "{:.2f}"),
        Column("seconds of the cores", "{:.2f}"),
        Column("times as fast, by the cores", "{:.2f}"),
        Column("% of the peak", "{:.0f}"),
        Column("difference of the score", "{:+.5f}"),
    ]
    rows: list[list[Cell]] = [
        [
            name,
            value,
            times["published"] / value,
            work[name],
            work["published"] / work[name],
            100 * flop / work[name] / fastest[precisions[name]],
            scores[name] - scores["published"],
        ]
        for name, value in times.items()
    ]
    command = f"python benchmarks/dsl_fiqa.py --preset {args.preset} --crops {args.crops}"
    Output(args.results, command).add("dsl_fiqa_speed", what, columns, rows)


if __name__ == "__main__":
    main()
