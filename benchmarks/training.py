"""One optimisation step of CLIB-FIQA at the size of RN50 (random weights): the published step against ours.

    python benchmarks/training.py

The published step sends the 360 sentences, padded to 77 tokens, through the text tower for every batch, back-propagates
through it to the token embedding, and computes in fp32. Floors on two cores: 8 times in fp32, and 15 times in bf16 on a
CPU that is fast in it (with AMX).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from published import encode_prompts, use_published_attention

from command_line import keep_freed_memory
from config_train import TrainConfig
from methods.clib_fiqa.data import LabelledFaces
from methods.clib_fiqa.loop import batch_losses, factor_joint, update
from methods.clib_fiqa.losses import earth_movers_distance, score_to_distribution, task_losses
from methods.clib_fiqa.run import freeze, prepare_run
from model.clib_fiqa import ClibFiqa
from model.clip import CLIP, ModifiedResNet, TextShape
from model.confidence import ConfidenceMLP
from training.batches import on_device
from training.images import Images


def random_model() -> ClibFiqa:
    """CLIB-FIQA of full size; random text features save the pass through the text tower."""
    torch.manual_seed(0)
    clip = CLIP(ModifiedResNet((3, 4, 6, 3), 64, 1024, heads=32), TextShape())
    return ClibFiqa(clip, F.normalize(torch.randn(360, 1024), dim=1))


def random_faces(number: int) -> LabelledFaces:
    """Noise with labels, in memory."""
    pictures = torch.randint(0, 256, (number, 224, 224, 3), dtype=torch.uint8)
    images = Images([""] * number, torch.arange(number), random_model().preprocessing, 0, pictures)
    return LabelledFaces(images, torch.rand(number), torch.randint(0, 2, (number, 5)))


def published_step(faces: LabelledFaces, device: torch.device) -> Callable[[], None]:
    """Text tower in the graph, 77 tokens, fp32, two AdamW with a kernel for each weight."""
    model, mlp = random_model().to(device), ConfidenceMLP().to(device)
    freeze(model, "published")
    model.train()
    use_published_attention(model.clip)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizers = [torch.optim.AdamW(weights, 1e-5, foreach=False) for weights in (trained, list(mlp.parameters()))]
    assert faces.images.cached is not None, "random_faces keeps them"
    images = faces.images.preprocessing.normalise(faces.images.cached.to(device)).contiguous()
    target, factors = score_to_distribution(faces.quality.to(device)), faces.factors.to(device)

    def step() -> None:
        joint = model.logits(images, encode_prompts(model.clip)).softmax(dim=1)
        loss = task_losses(joint, target, factors).sum()
        mlp_loss = earth_movers_distance(mlp(factor_joint(joint).detach()), target)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss + mlp_loss).backward()
        for optimizer in optimizers:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()

    return step


def our_step(faces: LabelledFaces, device: torch.device, precision: Literal["fp32", "bf16"]) -> Callable[[], None]:
    """The step of methods/clib_fiqa/loop.py with the text tower frozen, images from memory and to the device."""
    keep_freed_memory()  # as train.py does
    config = TrainConfig(precision=precision)
    run = prepare_run(config, device, random_model(), ConfidenceMLP())
    run.model.train()
    labelled, images = faces.to(device), faces.images
    epochs = (batch for epoch in count() for batch in images.batches(len(images.paths), seed=(epoch,)))
    batches = on_device(epochs, device)

    def step() -> None:
        update(run, batch_losses(run, labelled, next(batches)).sum())

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Median time of a step."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print each procedure's arithmetic and time. The first, counted step is the warm-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of ours; the published one gets 2")
    arguments = parser.parse_args()
    faces = random_faces(arguments.batch_size)
    cpu = torch.device("cpu")
    steps = {
        "published": lambda faces: published_step(faces, cpu),
        "fp32": lambda faces: our_step(faces, cpu, "fp32"),
        "bf16": lambda faces: our_step(faces, cpu, "bf16"),
    }
    amx = "with" if torch.cpu._is_amx_tile_supported() else "without"  # matrix instructions, which bf16 lives on
    print(f"batch {arguments.batch_size}, {torch.get_num_threads()} threads, {amx} AMX, torch {torch.__version__}")
    baseline_time = baseline_flops = 0.0
    for name, make in steps.items():
        step = make(faces)
        with FlopCounterMode(display=False) as counter:
            step()
        flops, median = counter.get_total_flops(), seconds(step, 2 if name == "published" else arguments.repeats)
        baseline_time, baseline_flops = baseline_time or median, baseline_flops or flops
        print(
            f"{name:10} {median:7.2f} s a step   {baseline_time / median:5.1f} times   "
            f"{flops / 1e12:6.2f} TFLOP ({flops / baseline_flops:6.1%} of the published step)   "
            f"{flops / median / 1e9:6.0f} GFLOP/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
