"""The loss of DifFIQA's diffusion model (Babnik, Peer, Štruc, IJCB 2023)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from model.diffusion import GaussianDiffusion


def diffusion_loss(diffusion: GaussianDiffusion, low: Tensor, high: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of the images of high quality that are predicted from a noisy blend with low quality.

    `low`, `high` and `noise` are (N, 3, S, S), the images in [-1, 1]; `time` is (N,) int64, below 100.
    """
    noisy = diffusion.q_sample(diffusion.blend(low, high, time), time, noise)
    return F.mse_loss(diffusion(noisy, time).float(), high)
