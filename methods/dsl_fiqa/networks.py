"""The networks of a training, new or from files."""

from __future__ import annotations

from pathlib import Path

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
