"""A tiny diffusion model, a tiny FR model and a few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.checkpoint import save_checkpoint
from model.diffusion import GaussianDiffusion, Unet
from model.iresnet import IResNet

SIDE = 32


def write_models(folder: Path) -> None:
    """diffusion.safetensors of `SIDE` pixels, and fr.safetensors of 48."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(16, (1, 2), heads=1), image_size=SIDE)
    metadata = {"system": "diffiqa-diffusion", "preprocessing": diffusion.preprocessing.to_json()}
    save_checkpoint(folder / "diffusion.safetensors", diffusion.state_dict(), metadata)
    recognizer = IResNet((1, 1, 1, 1), (16, 16, 16, 16), embedding=24, image_size=48, quality_head=False)
    save_checkpoint(folder / "fr.safetensors", recognizer.state_dict(), {"system": "cr-fiqa"})


def write_pictures(folder: Path, count: int) -> list[np.ndarray]:
    """Random pictures of 32 pixels in two folders, a and b."""
    rng, pictures = np.random.default_rng(0), []
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        pictures.append(np.array(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        Image.fromarray(pictures[-1]).save(folder / "ab"[index % 2] / f"{index}.png")
    return pictures
