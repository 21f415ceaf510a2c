"""The networks of a training, new or from files, and how a new trunk may begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model import CheckpointError, load
from model.degradation_encoder import DegradationEncoder
from model.dsl_fiqa import DslFiqa


def load_quality_network(weights: str | Path, encoder: str | Path | None = None) -> DslFiqa:
    """The quality network with its degradation encoder, which another file may hold, in eval mode.

    Raises CheckpointError or WeightsError, in one line, when one of them is missing or is something else.
    """
    network = load(weights)
    if not isinstance(network, DslFiqa):
        raise CheckpointError(f"{weights} is a checkpoint of {type(network).__name__}; one of DSL-FIQA was expected")
    if encoder is not None:
        network.attach_encoder(load_encoder(encoder))
    if network.encoder is None:
        raise CheckpointError(f"{weights} holds no degradation encoder: give --degradation-encoder DE.pt")
    return network.eval()


def load_encoder(path: str | Path) -> DegradationEncoder:
    """The degradation encoder of a file of its own, in eval mode."""
    encoder = load(path)
    if isinstance(encoder, DslFiqa) and encoder.encoder is not None:
        return encoder.encoder
    if not isinstance(encoder, DegradationEncoder):
        raise CheckpointError(f"{path} is a checkpoint of {type(encoder).__name__}; a degradation encoder was expected")
    return encoder


@torch.no_grad()
def start_with_cosines(projection: torch.nn.Conv2d, seed: int) -> None:
    """Make the filters of a new trunk's first layer, (D, 3, P, P), cosines of random frequencies, in place.

    Natural pictures have little energy in high frequencies, so filters of random numbers hardly see blur, noise and
    compression, and a small trunk needs many epochs to find them. Here a filter is a product of two cosines (a DCT-II
    basis function), in brightness or in a colour difference. It is scaled with its frequency, so that all filters
    answer to natural pictures about equally. The answers are small (standard deviation about 0.4): the blocks add
    normalised values of about 1 to them, which would not count beside large ones.
    """
    count, _, side, _ = projection.weight.shape
    rng = np.random.default_rng(seed)
    places = (np.arange(side) + 0.5) * np.pi / side
    axes = np.array([(1, 1, 1), (1, 1, 1), (1, -1, 0), (1, 1, -2)], float)  # brightness twice, two colour differences
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    filters = np.empty((count, 3, side, side))
    for row in range(count):
        down, right = np.floor(side * rng.random(2) ** 2)  # low frequencies are more frequent
        wave = np.cos(down * places)[:, None] * np.cos(right * places)
        wave *= (1 + np.hypot(down, right)) ** 1.75 / np.linalg.norm(wave) / 60
        filters[row] = axes[row % 4][:, None, None] * wave * (1 if row % 4 < 2 else 4)  # colours differ less
    projection.weight.copy_(torch.from_numpy(filters))
    assert projection.bias is not None, "the trunk's first layer has one"
    projection.bias.zero_()
