"""The training of the default model in one process, with the features of the frozen trunks stored in a file.

These features are called levels (model/multi_level.py). `train.py` with the flags of the Makefile trains the same
model. This module is for many trainings on the same images: cross_fit.py and ablation.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config_train import TrainConfig
from evaluation.pairs import read_pairs
from methods.clib_fiqa.data import LabelledFaces, read_faces
from methods.clib_fiqa.frozen import frozen_levels, tower_of
from methods.clib_fiqa.loop import calibrate, train_epoch
from methods.clib_fiqa.run import start_run
from model.checkpoint import read_checkpoint, save_checkpoint
from model.clib_fiqa import ClibFiqa, expected_quality, marginals
from model.multi_level import TRUNKS
from training.images import Images, read_images

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {  # as in the Makefile
    "freeze": "trunk",
    "dropout": 0.3,
    "batch_size": 512,
    "epochs": 12,
    "factor_weight": 3.0,
    "calibration_epoch": 6,
    "lr": 2e-3,
    "lr_period": 0,
    "mlp_lr": 1e-3,
    "focal": "sample",
    "normalise": "none",
}


def recipe(table: Path, start: Path) -> TrainConfig:
    """The settings of the default model."""
    return TrainConfig(**RECIPE, data_list=str(table), clip_model=str(start), device="cpu")


def training_faces(config: TrainConfig) -> LabelledFaces:
    """The faces of the table, with their levels in the place of their pixels."""
    model = start_run(config, CPU).model
    faces, _ = read_faces(config.data_list, model.preprocessing, normalise="none", cache="yes", workers=2)
    faces.images.cached = stored_levels(Path(config.data_list).parent / "train", faces.images, model)
    return faces


def evaluation_levels(data: Path, pairs: Path, config: TrainConfig, folder: Path) -> tuple[list[str], Tensor]:
    """The images of a pair list, whose names are paths below the data folder, and their levels (N, L)."""
    model = start_run(config, CPU).model
    names = read_pairs(pairs).names
    paths = [str(data / path) for path in names]
    images, bad = read_images(paths, range(len(paths)), model.preprocessing, "yes", workers=2)
    if bad:
        raise ValueError(f"{paths[min(bad)]} cannot be read: {bad[min(bad)]}")
    return names, stored_levels(folder / pairs.stem, images, model)[:, 0]


def stored_levels(prefix: Path, images: Images, model: ClibFiqa) -> Tensor:
    """The levels (N, 2, L) of the images: read from a file whose path begins with `prefix`, or computed and stored.

    The name of the file holds hashes of the trunks and of the images' pixels, so that changed images under the same
    paths get levels of their own.
    """
    tower = tower_of(model)
    trunks = {name: tensor for name, tensor in tower.state_dict().items() if name.startswith(TRUNKS)}
    file = prefix.with_name(f"{prefix.name}-{hash_of_tensors(trunks)[:8]}-{hash_of_images(images)[:16]}.levels")
    if file.is_file():
        return read_checkpoint(file)[0]["levels"]
    levels = frozen_levels(tower, images, CPU)
    save_checkpoint(file, {"levels": levels}, {})
    return levels


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def hash_of_images(images: Images) -> str:
    """sha256 of the number of rows, of the numbers of the usable rows and of their pixels."""
    digest = hashlib.sha256(str(len(images.paths)).encode())
    for rows, pixels in images.in_order(64):
        digest.update(rows.numpy().data)
        digest.update(pixels.numpy().data)
    return digest.hexdigest()


def fit(config: TrainConfig, faces: LabelledFaces) -> ClibFiqa:
    """What train.py trains of these settings, in eval mode."""
    run = start_run(config, CPU)
    while run.epoch < config.epochs:
        train_epoch(run, faces)
        if run.epoch == config.calibration_epoch:
            calibrate(run, faces)
    return run.model.eval()


def fit_without(config: TrainConfig, faces: LabelledFaces, left_out: Tensor) -> ClibFiqa:
    """`fit` on the rows of the table where `left_out` (rows,) is false."""
    usable = faces.images.usable[~left_out[faces.images.usable]]
    return fit(config, replace(faces, images=replace(faces.images, usable=usable)))


@torch.no_grad()
def probabilities(model: ClibFiqa, levels: Tensor) -> dict[str, Tensor]:
    """Axis -> probabilities (N, its levels) of images by their levels of the trunk (N, L)."""
    return marginals(model.logits_of(tower_of(model).read(levels)).softmax(dim=1))


def scores(model: ClibFiqa, levels: Tensor) -> Sequence[float]:
    """Quality of images by their levels (N, L)."""
    return expected_quality(probabilities(model, levels)["quality"]).tolist()
