"""What a trunk that stays fixed says of the images of a run: computed once, instead of in every epoch."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from model.clib_fiqa import ClibFiqa
from model.fast import accelerate
from model.multi_level import MultiLevelTower
from training import processes
from training.images import Images

BATCH = 64


def tower_of(model: ClibFiqa) -> MultiLevelTower:
    """The image tower, whose trunk can stay fixed. Raises ValueError for a tower of another kind."""
    tower = model.clip.visual
    if not isinstance(tower, MultiLevelTower):
        raise ValueError(
            f"--freeze trunk needs an image tower that reads all levels of a trunk; the start weights hold a "
            f"{type(tower).__name__} (recipes/default_model/make_start.py makes one)"
        )
    return tower


@torch.no_grad()
def frozen_levels(tower: MultiLevelTower, images: Images, device: torch.device) -> Tensor:
    """The levels (N, 2, L) of each image and of its mirror image, in eval mode; 0 for rows that do not train.

    As `images.cached` they take the place of the pixels, which no epoch needs any more.
    """
    fast = cast(MultiLevelTower, accelerate(deepcopy(tower).eval(), torch.float32, device))
    levels = torch.zeros(len(images.paths), 2, tower.width)
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    with tqdm(total=len(images.usable), desc="trunk", unit="image", leave=False, disable=hidden) as progress:
        for rows, pixels in images.in_order(BATCH):
            for mirrored, view in enumerate((pixels, pixels.flip(2))):
                levels[rows, mirrored] = fast.levels(images.preprocessing.normalise(view.to(device))).cpu()
            progress.update(len(rows))
    return levels
