"""Where the five points of aligned crops lie, for the training of the network of points.

An aligned crop tells the similarity that brought its points to the template, but not the points. The reference's own
detector (scrfd.py) looks at each crop four times. A ridge regression maps what it saw to the points of the reference,
learned from the crops whose originals have such points. Only the shape is taken from it: the result is moved, turned
and scaled so that it lies as the crop says.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from faces.reader import read_image
from faces.template import ARCFACE_POINTS, mapped, similarity_transform

from .scrfd import open_scrfd, scrfd_points

LOOKS = ((0.5, False), (0.5, True), (0.75, False), (0.75, True))  # padding and mirroring
SIDE = 256  # pixels, as for the reference
ELSEWHERE = 12.0  # pixels of the template between a candidate's points and the template's: not the crop's face
RIDGE = 100.0  # added to the squares of the 40 coordinates


def crop_points(
    data: Path, paths: Sequence[Path], known: Mapping[Path, np.ndarray], workers: int
) -> dict[Path, np.ndarray]:
    """Points (5, 2) of each crop in which every look finds the face. `known` are the reference's, of some of them, in
    any similarity."""
    cv2.setNumThreads(0)  # its thread pool does not survive the fork of the workers
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        seen = pool.map(partial(looks_at, data), paths, chunksize=32)
        shown = tqdm(zip(paths, seen, strict=True), "points of crops", len(paths), mininterval=10, disable=None)
        looks = {path: look for path, look in shown if look is not None}
    learned = [path for path in known if path in looks]
    if not learned:
        raise ValueError("SCRFD finds no face in any crop whose original has points; are these aligned crops?")
    weights, constant = ridge(
        np.stack([looks[path] for path in learned]), np.stack([aligned(known[path]).ravel() for path in learned])
    )
    return {path: aligned((look @ weights + constant).reshape(5, 2)) for path, look in looks.items()}


def looks_at(data: Path, path: Path) -> np.ndarray | None:
    """The coordinates (40,) of the points of all looks, each aligned; None where one look finds no face."""
    crop, coordinates = read_image(path), []
    for padding, mirrored in LOOKS:
        for points in scrfd_points(open_scrfd(data), crop, padding, SIDE, mirrored):
            if np.linalg.norm(points - ARCFACE_POINTS, axis=1).mean() < ELSEWHERE:
                coordinates.append(aligned(points).ravel())
                break
        else:
            return None
    return np.concatenate(coordinates)


def aligned(points: np.ndarray) -> np.ndarray:
    """Points (5, 2) brought to the template by the similarity that fits them best."""
    return mapped(points, similarity_transform(points, ARCFACE_POINTS))


def ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, M) and constant (M,) of the ridge regression from x (N, K) to y (N, M)."""
    middle_x, middle_y = x.mean(axis=0), y.mean(axis=0)
    centred = x - middle_x
    weights = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ (y - middle_y))
    return weights, middle_y - middle_x @ weights
