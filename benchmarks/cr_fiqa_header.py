"""Memory and time of a training step of CR-FIQA's header with the 85,742 classes of MS1MV2, batch 128, on the CPU.

    python benchmarks/cr_fiqa_header.py

Forward, backward and SGD with momentum, each kind in a process of its own: the published formulation (normalise the
kernel, clamp, acos and cos of all cosines, cross-entropy), ours with all classes, and ours with a tenth of them
(partial FC). The memory is the peak of the process above what it had before the header was made.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from methods.cr_fiqa.header import arcface_loss
from methods.cr_fiqa.sampling import sample_classes, update_centres
from model.iresnet import ArcFaceHeader

WIDTH = 512
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def published(classes: int) -> Callable[[Tensor, Tensor], None]:
    """The published order of operations."""
    kernel = nn.Parameter(nn.init.normal_(torch.empty(WIDTH, classes), std=0.01))
    optimizer = torch.optim.SGD([kernel], LR, MOMENTUM, weight_decay=DECAY)

    def step(embeddings: Tensor, labels: Tensor) -> None:
        cosines = (F.normalize(embeddings, dim=1) @ (kernel / kernel.norm(dim=0, keepdim=True))).clamp(-1, 1)
        with torch.no_grad():
            rows = torch.arange(len(labels))
            cosines[rows, labels].clone()  # CCS
            others = cosines.clone()
            others[rows, labels] = -1e-12
            others.max(dim=1)  # NNCCS
        margin = torch.zeros_like(cosines).scatter_(1, labels[:, None], 0.5)
        logits = (cosines.clamp(-1 + 1e-7, 1 - 1e-7).acos() + margin).cos() * 64
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def ours(classes: int) -> Callable[[Tensor, Tensor], None]:
    """All classes."""
    header = ArcFaceHeader(WIDTH, classes)
    optimizer = torch.optim.SGD(header.parameters(), LR, MOMENTUM, weight_decay=DECAY, fused=True)

    def step(embeddings: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        arcface_loss(embeddings, header.kernel, labels)[0].mean().backward()
        optimizer.step()

    return step


def sampled(classes: int) -> Callable[[Tensor, Tensor], None]:
    """A tenth of the classes."""
    header = ArcFaceHeader(WIDTH, classes).requires_grad_(False)
    momenta, generator = torch.zeros(classes, WIDTH), torch.Generator().manual_seed(0)

    def step(embeddings: Tensor, labels: Tensor) -> None:
        rows = sample_classes(labels, classes, 0.1, generator)
        chosen = header.kernel.t()[rows].t().requires_grad_()
        arcface_loss(embeddings, chosen, torch.searchsorted(rows, labels))[0].mean().backward()
        assert chosen.grad is not None
        update_centres(header.kernel.t(), momenta, rows, chosen.grad.t(), LR, MOMENTUM, DECAY)

    return step


KINDS = {"published": published, "ours, all classes": ours, "ours, a tenth sampled": sampled}


def measure(kind: str, classes: int, batch: int, steps: int) -> tuple[float, float, float]:
    """Peak memory in MB, the median and the shortest time of a step in seconds."""
    torch.manual_seed(0)
    embeddings = torch.randn(batch, WIDTH, requires_grad=True)
    labels = torch.randint(0, classes, (batch,))
    (embeddings @ embeddings.t()).sum().backward()  # now the thread pool and the libraries are there
    torch.optim.SGD([embeddings], LR, MOMENTUM).step()
    embeddings.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, times = KINDS[kind](classes), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        step(embeddings, labels)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return peak / 1024, statistics.median(times[1:]), min(times[1:])


def main() -> None:
    """One line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=85_742)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    args = parser.parse_args()
    print(f"{args.classes:,} classes, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kind in KINDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory, median, shortest = pool.apply(measure, (kind, args.classes, args.batch, args.steps))
        print(f"{kind:24} {memory:6.0f} MB  {median:.3f} s a step (shortest {shortest:.3f})", flush=True)


if __name__ == "__main__":
    main()
