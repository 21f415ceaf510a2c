"""Train the network that finds the five points of a face (model/face_points.py).

Crops that are aligned already have their points where the template has them: turned, scaled and moved at random they
give any number of windows. Of these only the similarity is known that brings the points to the template, and not how
far each point lies beside it. Originals tell that too, and what lies around a face. The features of all windows are
computed once; only the last layers learn.

    pip download --no-deps facenet-pytorch && unzip facenet_pytorch-*.whl facenet_pytorch/data/onet.pt
    python -m recipes.raw_photographs.train_points --data ../shared/data --onet facenet_pytorch/data/onet.pt \\
        --output weights/face_points.safetensors

With --leave-out 0 or 1 half of the identities that have originals are left out, so that an honest measurement on the
other originals is possible (benchmarks/raw_photographs.py).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from faces.template import ARCFACE_POINTS, mapped, similarity_transform
from model.checkpoint import read_checkpoint, save_checkpoint
from model.face_points import SIZE, FacePoints
from recipes.default_model.crops import NEVER_TRAIN

MIDDLE = np.array([56.0, 72.0])  # of the points, in the template
LFW_OFFSET = np.array([0.6, 0.55])  # pixels: LFW's crops lie so far beside the points of its originals
FEW = 12  # images of one identity of LFW
EVERYWHERE = -1  # the fold of what both folds learn from

Generator = np.random.Generator


@dataclass
class Windows:
    """Windows (N) with what is known of them."""

    pixels: list[np.ndarray] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)  # in the template's pixels
    is_face: list[bool] = field(default_factory=list)
    each_known: list[bool] = field(default_factory=list)  # each point is known, not only the similarity that fits them
    fold: list[int] = field(default_factory=list)

    def add(self, pixels: np.ndarray, points: np.ndarray, is_face: bool, fold: int, each_known: bool = False) -> None:
        self.pixels.append(pixels)
        self.points.append(points)
        self.is_face.append(is_face)
        self.each_known.append(each_known)
        self.fold.append(fold)


def run(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    network = FacePoints()
    trunk, _ = read_checkpoint(args.onet)
    network.trunk.load_state_dict({key: value for key, value in trunk.items() if not key.startswith("dense6")})
    windows = make_windows(args.data, np.random.default_rng(args.seed))
    kept = np.array([fold != args.leave_out for fold in windows.fold])
    features = all_features(network, np.stack(windows.pixels)[kept])
    targets = torch.tensor(np.stack(windows.points)[kept] - ARCFACE_POINTS, dtype=torch.float32)
    is_face, each_known = (
        torch.tensor(np.array(values)[kept], dtype=torch.float32) for values in (windows.is_face, windows.each_known)
    )
    train(network, features, targets, is_face, each_known, args)
    metadata = {
        "system": "face-points",
        "origin": "trunk: O-Net of MTCNN, from the PyPI package facenet-pytorch (MIT); last layers: "
        "recipes/raw_photographs/train_points.py on LFW's training identities and CelebA",
        "options": json.dumps({name: str(value) for name, value in vars(args).items()}),
    }
    save_checkpoint(args.output, {key: value.half() for key, value in network.state_dict().items()}, metadata)
    return 0


# ---- windows --------------------------------------------------------------------------------------------------------


def make_windows(data: Path, rng: Generator) -> Windows:
    """Windows of crops, of originals, and of what is no face."""
    windows, folds = Windows(), folds_of(data)
    lfw = (data / "splits" / "lfw_train_identities.txt").read_text().split()
    for name in tqdm(lfw, desc="LFW", disable=None):
        for path in sorted((data / "faces" / "lfw" / name).glob("*.jpg"))[:FEW]:
            add_crop(windows, read_image(path), LFW_OFFSET, 2, folds.get(name, EVERYWHERE), rng)
    for folder in tqdm(sorted((data / "faces" / "celeba").iterdir()), desc="CelebA", disable=None):
        if folder.name not in NEVER_TRAIN:
            for path in sorted(folder.glob("*.jpg")):
                add_crop(windows, read_image(path), np.zeros(2), 4, folds[folder.name], rng)
    for relative, points in tqdm(list(originals(data)), desc="originals", disable=None):
        identity = relative.split("/")[1]
        if identity not in NEVER_TRAIN:
            add_original(windows, read_image(data / "raw" / relative), points, folds[identity], rng)
    for i in range(1500):
        windows.add(harmed(pattern(i, rng), rng), ARCFACE_POINTS, False, EVERYWHERE)
    return windows


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


def add_crop(windows: Windows, crop: np.ndarray, offset: np.ndarray, count: int, fold: int, rng: Generator) -> None:
    borders = cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT
    for _ in range(count):
        matrix = near_template(rng, wide=rng.random() < 0.2)
        pixels = window(crop, matrix, int(rng.choice(borders, p=(0.5, 0.3, 0.2))))
        windows.add(harmed(pixels, rng), mapped(ARCFACE_POINTS + offset, matrix), True, fold)


def add_original(windows: Windows, picture: np.ndarray, points: np.ndarray, fold: int, rng: Generator) -> None:
    aligned = similarity_transform(points, ARCFACE_POINTS)
    for i in range(8):
        matrix = composed(near_template(rng, wide=i % 2 == 0), aligned)
        pixels = window(picture, matrix, cv2.BORDER_CONSTANT)
        windows.add(harmed(pixels, rng), mapped(points, matrix), True, fold, each_known=True)
    for _ in range(7):
        pixels = window(picture, composed(far_from_template(rng), aligned), cv2.BORDER_CONSTANT)
        windows.add(harmed(pixels, rng), ARCFACE_POINTS, False, fold)


def near_template(rng: Generator, wide: bool) -> np.ndarray:
    """A random similarity (2, 3) as the error of a detector's points is (wide), or as that of better points is."""
    if wide:
        return similarity(rng.normal(0, 7), np.exp(rng.normal(-0.02, 0.1)), rng.normal(0, 3, 2))
    return similarity(rng.normal(0, 2.5), np.exp(rng.normal(0, 0.04)), rng.normal(0, 1.3, 2))


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
    """Half of the windows are resampled, blurred, damaged or covered in part."""
    draw = rng.random()
    if draw < 0.2:
        side = int(rng.integers(24, 60))
        small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if draw < 0.3:
        return cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 2))
    if draw < 0.45:
        return degrade(pixels, str(rng.choice(PHOTOGRAPHIC)), rng.uniform(0, 0.7), rng)
    if draw < 0.52:
        covered, (left, top), (width, height) = pixels.copy(), rng.integers(0, 50, 2), rng.integers(10, 34, 2)
        covered[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        return covered
    return pixels


def pattern(index: int, rng: Generator) -> np.ndarray:
    """A window of one colour, or of smooth noise about it."""
    colour = rng.integers(0, 256, 3)
    if index % 3 == 0:
        return np.full((SIZE, SIZE, 3), colour, np.uint8)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE, 3)), (0, 0), rng.uniform(0.3, 12))
    return np.clip(noise * rng.uniform(1, 12) + colour, 0, 255).astype(np.uint8)


# ---- training -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def all_features(network: FacePoints, windows: np.ndarray) -> Tensor:
    """The features of windows (N, 72, 72, 3): float16 (N, FEATURES)."""
    starts = tqdm(range(0, len(windows), 256), desc="features", disable=None)
    return torch.cat([network.features(torch.from_numpy(windows[i : i + 256])).half() for i in starts])


def train(
    network: FacePoints,
    features: Tensor,
    targets: Tensor,
    is_face: Tensor,
    each_known: Tensor,
    args: argparse.Namespace,
) -> None:
    """Fit the linear layer by least squares, then both layers by gradient descent. Targets are points (N, 5, 2)
    relative to the template; where `each_known` (N,) is 0 only the similarity that fits them counts."""
    sample = features[torch.randperm(len(features))[:20000]].float()
    network.mean.copy_(sample.mean(0))
    network.std.copy_(sample.std(0).clamp(min=1e-3))
    network.requires_grad_(False)
    network.linear.weight.zero_()
    network.linear.bias.zero_()
    fitted = similarity_part(targets)
    add_linear(network, features, fitted, is_face, args.ridge)
    add_linear(network, features, targets - fitted, each_known, args.ridge)
    torch.nn.init.zeros_(network.output.weight)
    layers = [network.linear, network.hidden, network.output]
    parameters = [parameter.requires_grad_() for layer in layers for parameter in layer.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay)
    steps = args.epochs * (len(features) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    for _ in tqdm(range(args.epochs), desc="epochs", disable=None):
        order = torch.randperm(len(features))
        for batch in order[: len(order) // args.batch_size * args.batch_size].view(-1, args.batch_size):
            x = F.dropout((features[batch].float() - network.mean) / network.std, args.dropout)
            y = network.linear(x) + network.output(F.relu(network.hidden(x)))
            error = y[:, :-1].unflatten(1, (5, 2)) - targets[batch]
            loss = points_loss(error, is_face[batch], each_known[batch])
            loss = loss + F.binary_cross_entropy_with_logits(y[:, -1], is_face[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        tqdm.write(f"loss {np.mean(losses[-100:]):.4f}")
    with torch.no_grad():
        network.linear.bias[:-1] += torch.tensor(ARCFACE_POINTS.ravel(), dtype=torch.float32)
    network.eval()


@torch.no_grad()
def add_linear(network: FacePoints, features: Tensor, targets: Tensor, chosen: Tensor, ridge: float) -> None:
    """Add to the linear layer the ridge regression of targets (N, 5, 2) over the rows where `chosen` (N,) is 1."""
    rows_of = torch.nonzero(chosen)[:, 0]
    width = features.shape[1]
    gram, moment = torch.zeros(width, width), torch.zeros(width, 10)
    middle = targets[rows_of].flatten(1).mean(0)
    for rows in rows_of.split(4096):
        x = (features[rows].float() - network.mean) / network.std
        gram += x.T @ x
        moment += x.T @ (targets[rows].flatten(1) - middle)
    gram.diagonal().add_(ridge * len(rows_of))
    network.linear.weight[:-1] += torch.linalg.solve(gram, moment).T
    network.linear.bias[:-1] += middle


def similarity_part(offsets: Tensor) -> Tensor:
    """The part of offsets (N, 5, 2) of the template's points that a small similarity transform makes."""
    z = torch.tensor((ARCFACE_POINTS - ARCFACE_POINTS.mean(0)) @ (1, 1j), dtype=torch.complex64)
    moved = torch.view_as_complex(offsets.contiguous())
    turned = (moved * z.conj()).sum(dim=1, keepdim=True) / (z.abs() ** 2).sum()
    return torch.view_as_real(turned * z + moved.mean(dim=1, keepdim=True))


def points_loss(error: Tensor, is_face: Tensor, each_known: Tensor) -> Tensor:
    """Errors (N, 5, 2) in pixels of the template -> the loss: of the similarity that fits the points, which decides how
    a face is aligned, and where they are known of the points themselves."""
    fitted = similarity_part(error)
    each, whole = (
        F.smooth_l1_loss(x, torch.zeros_like(x), beta=0.5, reduction="none").mean(dim=(1, 2)) for x in (error, fitted)
    )
    return (each * each_known).sum() / each_known.sum().clamp(min=1) + 2 * (whole * is_face).sum() / is_face.sum()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="the data folder of docs/data.md")
    add("--onet", type=Path, required=True, metavar="onet.pt", help="MTCNN's O-Net, as facenet-pytorch has it")
    add("--output", type=Path, default=Path("weights/face_points.safetensors"), metavar="FILE")
    add("--leave-out", type=int, choices=(0, 1), help="a half of the identities with originals that is not learned")
    add("--epochs", type=positive, default=12)
    add("--batch-size", type=positive, default=256)
    add("--lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--dropout", type=float, default=0.2, help="share of the features that a step does not see (0.2)")
    add("--ridge", type=float, default=0.1)
    add("--seed", type=natural, default=0)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
