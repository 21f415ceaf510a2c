"""Train the small network that passes aligned crops quickly (model/crop_check.py).

    nice python -m recipes.raw_photographs.train_crop_check --data ../shared/data

It learns from aligned crops and photographs of one half of the people who have originals, and from LFW's training
identities without any. The other half, and LFW's test identities, measure it (benchmarks/raw_photographs.py --only
crops). Each crop is moved a little, damaged and given another border at random, anew in each batch. As many pictures
are no aligned crops: the same faces misplaced, turned or on their head, parts of photographs, whole photographs,
patterns. They are damaged in the same way, so that damage tells nothing.

One thread, no other process: the same command on the same machine gives the same file, bit for bit. It takes some
eight minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.degradations import KINDS, degrade
from faces.detect import halved
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, SIZE, mapped, off_template, similarity_transform, warped
from model.checkpoint import save_checkpoint
from model.crop_check import CropCheck
from recipes.default_model.crops import NEVER_TRAIN, split

from .train_points import (
    LFW_OFFSET,
    MISPLACED,
    PLACED,
    composed,
    far_from_template,
    folds_of,
    near_template,
    originals,
    rate_at,
    similarity,
)

MEASURED = 1  # the fold of the people that nothing is learned from
STEPS, BATCH = 3600, 128
LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.01
DAMAGED = 0.5  # share of the pictures
BORDERS = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)

Generator = np.random.Generator


class Picture(NamedTuple):
    pixels: np.ndarray  # RGB uint8 (H, W, 3)
    points: np.ndarray  # (5, 2), where the face's points lie in it


class Pictures(NamedTuple):
    crops: list[Picture]
    originals: list[Picture]


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # sums over several threads would round differently
    cv2.setNumThreads(1)
    torch.manual_seed(args.seed)
    network = CropCheck()
    train(network, read_pictures(args.data), args.steps, args.seed)
    metadata = {
        "system": "crop-check",
        "origin": "trained by recipes/raw_photographs/train_crop_check.py on LFW's training identities, CFP and CelebA",
        "options": json.dumps({name: getattr(args, name) for name in ("steps", "seed")}),
    }
    save_checkpoint(args.output, {key: value.half() for key, value in network.state_dict().items()}, metadata)
    return 0


# ---- pictures -------------------------------------------------------------------------------------------------------


def read_pictures(data: Path) -> Pictures:
    """Everything that may train, in memory: about 0.8 GB."""
    folds, faces = folds_of(data), data / "faces"
    crops = []
    for folder in sorted((faces / "celeba").iterdir()):
        if folds[folder.name] != MEASURED and folder.name not in NEVER_TRAIN:
            crops += [Picture(read_image(path), ARCFACE_POINTS) for path in sorted(folder.glob("*.jpg"))]
    for name in split(data, "train"):
        if folds.get(name) != MEASURED:
            points = ARCFACE_POINTS + LFW_OFFSET
            crops += [Picture(read_image(path), points) for path in sorted((faces / "lfw" / name).glob("*.jpg"))]
    with open(faces / "cfp_identities.tsv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if folds.get(row["lfw"]) != MEASURED:
                paths = sorted((faces / "cfp" / row["cfp"]).glob("*.jpg"))
                crops += [Picture(read_image(path), ARCFACE_POINTS) for path in paths]
    whole = []
    for relative, points in originals(data):
        identity = relative.split("/")[1]
        if folds[identity] != MEASURED and identity not in NEVER_TRAIN:
            whole.append(Picture(read_image(data / "raw" / relative), points))
    return Pictures(crops, whole)


def aligned(pictures: Pictures, rng: Generator) -> np.ndarray:
    """A crop as an aligner makes it, a little beside; one in five from an original."""
    one = drawn(pictures.originals if rng.random() < 0.2 else pictures.crops, rng)
    while True:
        matrix = composed(near_template(rng), similarity_transform(one.points, ARCFACE_POINTS))
        if off_template(mapped(one.points, matrix)) < PLACED:
            break
    crop = warped(one.pixels, matrix, SIZE, border(rng))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def misplaced(pictures: Pictures, rng: Generator) -> np.ndarray:
    """A face that is not where the template has one, of a crop or of an original."""
    one = drawn(pictures.originals if rng.random() < 0.5 else pictures.crops, rng)
    while True:
        matrix = composed(moved(rng), similarity_transform(one.points, ARCFACE_POINTS))
        if off_template(mapped(one.points, matrix)) > MISPLACED:
            return warped(one.pixels, matrix, SIZE, border(rng))


def moved(rng: Generator) -> np.ndarray:
    """A random similarity (2, 3): one that no template survives, or one just too large."""
    if rng.random() < 0.5:
        return far_from_template(rng)
    return similarity(rng.normal(0, 30), np.exp(rng.normal(0, 0.3)), rng.normal(0, 16, 2))


def turned(pictures: Pictures, rng: Generator) -> np.ndarray:
    """A face on its side or on its head, turned or mirrored, otherwise where the template has one."""
    one = drawn(pictures.crops, rng)
    matrix = similarity(rng.choice((90, 180, 180, -90)) + rng.normal(0, 15), np.exp(rng.normal(0, 0.12)),
                        rng.normal(0, 5, 2))
    if rng.random() < 0.25:
        mirrored = np.array([[1.0, 0, 0], [0, -1, 2 * ARCFACE_POINTS[:, 1].mean()]])
        matrix = composed(mirrored, similarity(rng.normal(0, 7), np.exp(rng.normal(0, 0.1)), rng.normal(0, 4, 2)))
    return warped(one.pixels, composed(matrix, similarity_transform(one.points, ARCFACE_POINTS)), SIZE, border(rng))


def rolled(pictures: Pictures, rng: Generator) -> np.ndarray:
    """A crop moved by a third to two thirds of its side; what leaves it comes in on the other side."""
    shift = rng.integers(SIZE // 3, 2 * SIZE // 3, 2) * rng.choice((0, 1), 2)
    axis = int(rng.integers(2))
    shift[axis] = max(shift[axis], SIZE // 3)
    return np.roll(drawn(pictures.crops, rng).pixels, shift.tolist(), axis=(0, 1))


def reduced(pictures: Pictures, rng: Generator) -> np.ndarray:
    """A whole photograph, or a rectangle of it, reduced to the size of a crop without keeping its sides' ratio."""
    while True:
        one = drawn(pictures.originals, rng)
        sides = np.array(one.pixels.shape[1::-1])
        low, high = (np.zeros(2), sides) if rng.random() < 0.4 else rectangle(sides, rng)
        left, top, right, bottom = np.rint([*low, *high]).astype(int).tolist()
        points = (one.points - (left, top) + 0.5) * SIZE / (right - left, bottom - top) - 0.5
        if off_template(points) > MISPLACED:
            return cv2.resize(one.pixels[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def rectangle(sides: np.ndarray, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two corners (2,) of a random rectangle of at least 40 pixels in a picture with these sides (2,)."""
    size = np.maximum(sides * rng.uniform(0.2, 1) * np.exp(rng.normal(0, 0.15, 2)), 40).clip(max=sides)
    low = rng.uniform(0, sides - size)
    return low, low + size


def pattern(pictures: Pictures, rng: Generator) -> np.ndarray:
    """No picture: noise of any grain, stripes, shapes of random colours, or one colour."""
    draw, colour = rng.random(), rng.integers(0, 256, 3)
    if draw < 0.3:
        return grain(colour, rng)
    if draw < 0.4:
        return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    if draw < 0.6:
        return stripes(colour, rng)
    return shapes(colour, int(rng.integers(1, 14)) if draw < 0.9 else 0, rng)


def grain(colour: np.ndarray, rng: Generator) -> np.ndarray:
    noise = rng.normal(0, 60, (SIZE, SIZE, int(rng.choice((1, 3)))))
    smooth = cv2.GaussianBlur(noise, (0, 0), np.exp(rng.uniform(-1.5, 3.2))).reshape(SIZE, SIZE, -1)
    return np.clip(smooth / smooth.std() * rng.uniform(5, 90) + colour, 0, 255).astype(np.uint8)


def stripes(colour: np.ndarray, rng: Generator) -> np.ndarray:
    """One wave or the product of two, soft or hard."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    waves = [
        np.sin(2 * np.pi * rng.uniform(0.5, 20) * (x * a + y * (1 - abs(a))) + 6 * rng.random())
        for a in rng.uniform(-1, 1, 2)
    ]
    mix = waves[0] * waves[1] if rng.random() < 0.5 else waves[0]
    mix = np.sign(mix) if rng.random() < 0.5 else mix
    return np.clip(colour + mix[..., None] * rng.uniform(10, 120, 3), 0, 255).astype(np.uint8)


def shapes(colour: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """Ellipses and quadrangles on one colour."""
    canvas = np.full((SIZE, SIZE, 3), colour, np.uint8)
    for _ in range(count):
        shade = rng.integers(0, 256, 3).tolist()
        place, size = rng.integers(-10, SIZE + 10, 2).tolist(), rng.integers(2, 45, 2).tolist()
        if rng.random() < 0.5:
            cv2.ellipse(canvas, place, size, float(rng.uniform(0, 180)), 0, 360, shade, -1)
        else:
            cv2.fillPoly(canvas, [rng.integers(-10, SIZE + 10, (4, 2)).astype(np.int32)], shade)
    return canvas


def drawn(some: Sequence[Picture], rng: Generator) -> Picture:
    return some[int(rng.integers(len(some)))]


def border(rng: Generator) -> int:
    """What lies beyond a picture: black most often, as aligners have it."""
    return int(rng.choice(BORDERS, p=(0.5, 0.3, 0.2)))


NO_CROPS: tuple[tuple[Callable[[Pictures, Generator], np.ndarray], float], ...] = (  # and how often each is drawn
    (misplaced, 0.45), (turned, 0.15), (rolled, 0.05), (reduced, 0.22), (pattern, 0.13),
)


def example(pictures: Pictures, is_aligned: bool, rng: Generator) -> np.ndarray:
    """A picture that is an aligned crop or none, as the network sees it: grey (56, 56)."""
    makers, shares = zip(*NO_CROPS, strict=True)
    make = aligned if is_aligned else makers[int(rng.choice(len(makers), p=shares))]
    pixels = np.ascontiguousarray(make(pictures, rng))
    if rng.random() < DAMAGED:
        pixels = degrade(pixels, str(rng.choice(list(KINDS))), rng.uniform(0, 1), rng)
    return halved(pixels)


# ---- training -------------------------------------------------------------------------------------------------------


def train(network: CropCheck, pictures: Pictures, steps: int, seed: int) -> None:
    """AdamW with a warm-up and a cosine; leaves the network in eval mode. Raises RuntimeError when the loss is not
    finite."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step / steps))
    rng = np.random.default_rng(seed)
    labels = np.arange(BATCH) % 2
    target = torch.from_numpy(labels).float()
    network.train()
    average = 0.0
    progress = tqdm(range(steps), mininterval=10, disable=None)
    for step in progress:
        grey = np.stack([example(pictures, bool(label), rng) for label in labels])
        loss = F.binary_cross_entropy_with_logits(network(torch.from_numpy(grey)), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        if not loss.isfinite():
            raise RuntimeError(f"the training has diverged: loss {loss.item():.4g}; try a lower LEARNING_RATE")
        optimizer.step()
        schedule.step()
        average += (loss.item() - average) / min(step + 1, 100)
        progress.set_postfix(loss=f"{average:.4f}")
    network.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="the data folder of docs/data.md")
    add("--output", type=Path, default=Path("weights/crop_check.safetensors"), metavar="FILE")
    add("--steps", type=positive, default=STEPS, metavar="N", help="(%(default)s)")
    add("--seed", type=natural, default=0)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
