"""How well scoring and training fill a GPU, at the size of RN50 (random weights), in one run and with the card's name.

    python benchmarks/gpu.py

Floors: image tower in bf16 at batch 256 at least 60 % of the measured matrix peak; 5,000 images/s from JPEG files with
16 cores; a training step at least 20 times as fast as the published one. Exit code 2 where there is no GPU.
This has never run on a GPU yet: the project was written on machines without one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.training import our_step, published_step, random_faces, random_model
from model.checkpoint import save_checkpoint
from model.fast import accelerate
from model.prompts import prompts_hash
from scoring import Scorer

BATCH = 256
MATRIX_SIZES = (4096, 8192)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Mean time of a call, of `repeats` calls in a row; three calls before them do not count."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of the best product of square bf16 matrices."""
    peak = 0.0
    for size in MATRIX_SIZES:
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        peak = max(peak, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, 50))
    return peak


@torch.inference_mode()
def tower_speed(device: torch.device, repeats: int) -> tuple[float, float]:
    """Images/s and FLOP/s of the image tower in bf16."""
    tower = accelerate(random_model().clip.visual.eval(), torch.bfloat16, device)
    images = torch.randn(BATCH, 3, 224, 224, device=device, dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        tower(images)
    time_of_batch = seconds(lambda: tower(images), repeats)
    return BATCH / time_of_batch, counter.get_total_flops() / time_of_batch


def scoring_speed(count: int, workers: int) -> float:
    """Images/s from JPEG files of 112x112 to scores."""
    model = random_model()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.safetensors"
        metadata = {"system": "clib-fiqa", "prompts": prompts_hash(), "preprocessing": model.preprocessing.to_json()}
        save_checkpoint(weights, model.to_tensors(text_tower=False), metadata)
        rng = np.random.default_rng(0)
        for index in range(256):
            smooth = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((112, 112))
            smooth.save(Path(folder) / f"{index}.jpg", quality=95)
        paths = [str(Path(folder) / f"{index % 256}.jpg") for index in range(count)]
        scorer = Scorer(weights=weights, device="cuda", batch_size=BATCH)
        for _ in scorer.stream(paths[: 4 * BATCH], workers):
            pass  # the first batches choose kernels
        began = time.perf_counter()
        for _ in scorer.stream(paths, workers):
            pass
        return count / (time.perf_counter() - began)


def waiting_share(step: Callable[[], None], repeats: int = 10) -> float:
    """The share of the time of some steps in which no kernel runs on the GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in events if not event.name.startswith("Memcpy")
    )
    busy, until = 0.0, 0.0  # microseconds; kernels on two streams may overlap
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / 1e6 / wall


def main() -> int:
    """Print the figures; exit code 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="timed batches and steps (30)")
    parser.add_argument("--images", type=int, default=50_000, help="scored from files (50,000)")
    parser.add_argument("--batch-size", type=int, default=64, help="of a training step (64)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read (one a core)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use here: nothing was measured", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {os.cpu_count()} cores")
    peak = matrix_peak(device)
    print(f"measured matrix peak, bf16: {peak / 1e12:.0f} TFLOP/s")
    speed, flops = tower_speed(device, arguments.repeats)
    print(f"image tower, bf16, batch {BATCH}: {speed:.0f} images/s, {flops / peak:.0%} of the matrix peak")
    speed = scoring_speed(arguments.images, arguments.workers)
    print(f"from JPEG files, {arguments.workers} processes: {speed:.0f} images/s")
    faces = random_faces(arguments.batch_size)
    published = seconds(published_step(faces, device), max(3, arguments.repeats // 5))
    torch.cuda.empty_cache()
    step = our_step(faces, device, "bf16")
    ours = seconds(step, arguments.repeats)
    print(
        f"training step, batch {arguments.batch_size}: {ours * 1e3:.1f} ms, the published one {published * 1e3:.1f} ms "
        f"({published / ours:.1f} times)"
    )
    print(f"share of a step in which the GPU waits: {waiting_share(step):.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
