"""DifFIQA's quality of a face (Babnik, Peer, Štruc, IJCB 2023): how far noise and its removal move the embedding.

An image x gets a little noise (x_n), and a diffusion model removes it again (x_r); the same is done with the mirror
image x^f. A good face keeps its embedding: the quality is the mean of five cosines, to x_n, x_r, x^f_n, x^f_r and x^f.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from labels.recognition import Recognizer
from model.diffusion import GaussianDiffusion, standardise_once

EMBED_BATCH = 64


@dataclass(frozen=True)
class Procedure:
    """How often and how carefully an image is looked at. The defaults are the published ones."""

    repeats: int = 10  # noisy versions of each view
    step: int = 5  # time step of the noise
    ddim_steps: int = 6  # steps that remove it
    views: int = 2  # 2: the image and its mirror image; 1: the image
    noise: Literal["own", "shared"] = "own"  # own: each image has noise of its own; shared: all have the same
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.step < 1 or self.ddim_steps < 1 or self.views not in (1, 2):
            raise ValueError(f"repeats, step and DDIM steps from 1 on and 1 or 2 views were expected, not {self}")

    def passes(self) -> int:
        """Passes through the UNet that an image costs."""
        return self.repeats * self.views * self.ddim_steps


# `fast` was measured (README.md): the same order of the images for less than a tenth of the cost.
PRESETS = {"full": Procedure(), "fast": Procedure(repeats=1, ddim_steps=3)}


def quality(
    clean: NDArray[np.floating],
    mirror: NDArray[np.floating],
    noisy: NDArray[np.floating],
    reconstructed: NDArray[np.floating],
) -> NDArray[np.float64]:
    """The quality (N,) from embeddings of any length.

    `clean` and `mirror` (N, D) are those of the images and of their mirror images, `noisy` and `reconstructed`
    (N, views, repeats, D) those of their views. Without the mirrored view its cosines are estimated: a cosine to
    x^f_n is taken for the product of those to x_n and to x^f.
    """
    base = clean[:, None, None]
    to_mirror = cosine(clean, mirror)  # (N,)
    terms = [cosine(base, views).mean(axis=2) for views in (noisy, reconstructed)]  # (N, views) each
    if noisy.shape[1] == 1:
        terms = [np.concatenate([term, term * to_mirror[:, None]], axis=1) for term in terms]
    return (terms[0].sum(axis=1) + terms[1].sum(axis=1) + to_mirror) / 5


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """The cosine over the last axis, in float64; the other axes are broadcast."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def make_scorer(
    diffusion: GaussianDiffusion,
    recognizer: Recognizer,
    procedure: Procedure,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """A function from faces, RGB uint8 (N, S, S, 3) with S = diffusion.preprocessing.size, to their quality (N,).

    The score of a face depends on its pixels and the seed only. On a CPU each face is a batch of its own, so that this
    holds to the last bit. `dtype` is that of the UNet's arithmetic.
    """
    diffusion = deepcopy(diffusion).to(device).eval().requires_grad_(False)
    standardise_once(diffusion)

    def score(faces: NDArray[np.uint8]) -> NDArray[np.float64]:
        if device.type == "cpu" and len(faces) > 1:
            return np.concatenate([score(face[None]) for face in faces])
        noise = torch.stack([noise_of(face, procedure) for face in faces]).to(device)
        images = diffusion.preprocessing.normalise(torch.from_numpy(faces).to(device))
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            views = look(diffusion, images, noise, procedure)
        count = len(images)
        pictures = [images, images.flip(3), *(view.flatten(0, 2) for view in views)]
        embeddings = embed(recognizer, torch.cat(pictures))
        clean, mirror = embeddings[:count], embeddings[count : 2 * count]
        noisy, reconstructed = embeddings[2 * count :].reshape(2, *views[0].shape[:3], -1)
        return quality(clean, mirror, noisy, reconstructed)

    return score


def look(
    diffusion: GaussianDiffusion, images: Tensor, noise: Tensor, procedure: Procedure
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) in [-1, 1] -> their noisy and reconstructed views, (N, views, repeats, 3, S, S) each.

    `noise` is (N, views, repeats, ddim_steps, 3, S, S): for each view the noise that it gets, then that of DDIM.
    """
    both = torch.stack([images, images.flip(3)][: procedure.views], dim=1)
    shape = (len(images), procedure.views, procedure.repeats, *images.shape[1:])
    flat = both[:, :, None].expand(shape).flatten(0, 2)
    noises = noise.flatten(0, 2)
    time = torch.full((len(flat),), procedure.step, device=images.device)
    noisy = diffusion.q_sample(flat, time, noises[:, 0])
    clean = diffusion.reconstruct(noisy, procedure.step, iter(noises[:, 1:].unbind(1)), procedure.ddim_steps)
    return noisy.reshape(shape), clean.float().reshape(shape)


def embed(recognizer: Recognizer, images: Tensor) -> NDArray[np.float32]:
    """Images (..., 3, S, S) in [-1, 1], or a little outside with noise, -> embeddings (..., D)."""
    size = recognizer.preprocessing.size
    flat = images.flatten(0, -4)
    if flat.shape[-1] != size:
        flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True)
    pixels = ((flat + 1) * 127.5).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    parts = [recognizer.embed(pixels[start : start + EMBED_BATCH]) for start in range(0, len(pixels), EMBED_BATCH)]
    return np.concatenate(parts).reshape(*images.shape[:-3], -1)


def noise_of(face: NDArray[np.uint8], procedure: Procedure) -> Tensor:
    """All noise that a face gets, (views, repeats, ddim_steps, 3, S, S), from its pixels and the seed."""
    side = face.shape[0]
    if procedure.noise == "shared":
        return _draw(procedure, side, procedure.seed)
    digest = hashlib.sha256(procedure.seed.to_bytes(8, "little") + face.tobytes()).digest()
    return _draw(procedure, side, int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=1)  # shared noise is drawn once
def _draw(procedure: Procedure, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (procedure.views, procedure.repeats, procedure.ddim_steps, 3, side, side)
    return torch.randn(shape, generator=generator)
