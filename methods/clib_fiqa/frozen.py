"""Features of a frozen trunk, computed once per run instead of in every epoch."""


from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor

from model.clib_fiqa import ClibFiqa
from model.fast import accelerate
from model.multi_level import MultiLevelTower
from training import processes
from training.batches import network_input
from training.console import counter
from training.images import Images

BATCH = 64


def tower_of(model: ClibFiqa) -> MultiLevelTower:
    """The image tower, whose trunk can be frozen. Raises ValueError for a tower of another kind."""
    tower = model.clip.visual
    if not isinstance(tower, MultiLevelTower):
        raise ValueError(
            f"--freeze trunk needs an image tower that reads all levels of a trunk; the start weights hold a "
            f"{type(tower).__name__} (recipes/default_model/make_start.py makes one)"
        )
    return tower


@torch.no_grad()
def frozen_levels(tower: MultiLevelTower, images: Images, device: torch.device) -> Tensor:
    """The trunk's features (N, 2, L) of each image and of its mirror image, in eval mode; 0 for rows that do not train.

    As `images.cached` they take the place of the pixels, which no epoch needs any more. Each process computes a share
    of them, and all get the whole.
    """
    fast = cast(MultiLevelTower, accelerate(deepcopy(tower).eval(), torch.float32, device))
    levels = torch.zeros(len(images.paths), 2, tower.width)
    with counter("trunk", len(images.usable), "image") as bar:
        for rows, pixels in images.in_order(BATCH * processes.count()):
            own = torch.zeros(len(pixels), 2, tower.width, device=device)
            for mirrored, view in enumerate((pixels, pixels.flip(2)) if len(pixels) else ()):
                own[:, mirrored] = fast.levels(network_input(view.to(device), images.preprocessing))
            levels[rows] = processes.gather(own, len(rows)).cpu()
            bar.update(len(rows))
    return levels
