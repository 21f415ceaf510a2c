"""DSL-FIQA on one picture: 20 crops as a batch against the published procedure, crop by crop, in one run.

    python benchmarks/dsl_fiqa.py                      the published sizes, random weights
    python benchmarks/dsl_fiqa.py --crops 4 --batches 4
    python benchmarks/dsl_fiqa.py --preset small       the small network, on pictures of 256x256

"published" runs one crop at a time: the whole trunk with its unused last blocks and head, and attention as plain matrix
products. The measurements take turns, and the least time of each counts, by the clock and in seconds of all cores,
which other programs on the machine disturb less. The share of the peak is that of a matrix product of 2048x2048 in the
same run, both by seconds of the cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from command_line import keep_freed_memory, positive
from methods.dsl_fiqa.config import QUALITY_PRESETS, QualityConfig
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa, DslFiqaShape


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


def peak() -> float:
    """FLOP of a large matrix product in a second of a core."""
    a, times = torch.randn(2048, 2048), []
    for _ in range(5):
        began = time.process_time()
        a @ a
        times.append(time.process_time() - began)
    return 2 * 2048**3 / min(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("published", "small"), default="published")
    parser.add_argument("--crops", type=positive, default=20, help="of the picture (default: 20)")
    parser.add_argument("--batches", type=positive, nargs="+", default=[4, 10, 20], help="crops at a time")
    parser.add_argument("--rounds", type=positive, default=2)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    small = args.preset == "small"
    shape = QualityConfig(**QUALITY_PRESETS["small"]).shape(64) if small else DslFiqaShape()
    network = DslFiqa(shape, DegradationEncoder((16, 32, 64) if small else (64, 128, 256))).eval()
    crops = torch.randn(args.crops, 3, shape.image_size, shape.image_size)
    each = (shape.landmark_count, 2) if shape.landmarks == "light" else (shape.landmark_count,)
    landmarks = torch.rand(args.crops, *each)

    def in_batches(size: int) -> Tensor:
        pairs = zip(crops.split(size), landmarks.split(size), strict=True)
        return torch.cat([network(*pair) for pair in pairs]).mean()

    def published() -> Tensor:
        with published_arithmetic(network):
            return in_batches(1)

    runs = {"published": published, "crop by crop": lambda: in_batches(1)}
    runs |= {f"batch of {size}": lambda size=size: in_batches(size) for size in args.batches}
    scores, times, work = {}, dict.fromkeys(runs, float("inf")), dict.fromkeys(runs, float("inf"))
    for _ in range(args.rounds):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            scores[name] = run().item()
            times[name] = min(times[name], time.perf_counter() - began)
            work[name] = min(work[name], time.process_time() - used)
    with without_fused_attention(), FlopCounterMode(display=False) as counter:  # it does not know the fused one
        network(crops[:1], landmarks[:1])
    flop = counter.get_total_flops() * args.crops
    fastest = peak()
    print(f"{torch.get_num_threads()} threads, {flop / 1e12:.2f} TFLOP, peak {fastest / 1e9:.0f} GFLOP/s of a core")
    print(f"the scores differ by {max(scores.values()) - min(scores.values()):.1e} of {scores['published']:.4f}")
    for name, value in times.items():
        faster, lighter = times["published"] / value, work["published"] / work[name]
        share = flop / work[name] / fastest
        print(f"{name:14} {value:8.2f} s  {faster:5.2f} x published", end="  ")
        print(f"{work[name]:8.2f} s of the cores  {lighter:5.2f} x published  {share:5.0%} of the peak")


if __name__ == "__main__":
    main()
