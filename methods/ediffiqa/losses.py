"""The losses of eDifFIQA (Babnik, Peer, Štruc, TBIOM 2024): label optimisation, quality, representation consistency.

Shapes: features, teacher embeddings and class centres (N, D), of any length; labels and predictions (N,).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def centre_distance(features: Tensor, centres: Tensor) -> Tensor:
    """1 - cosine of each feature vector to the centre of its class, (N,), in [0, 2]; no gradient flows through it."""
    return 1 - F.cosine_similarity(features.detach(), centres, dim=1)


def optimised_labels(labels: Tensor, distance: Tensor, epsilon: float) -> Tensor:
    """q* = clamp(q - epsilon * distance, 0, 1): images far from the centre of their class get a lower label."""
    return (labels - epsilon * distance).clamp(0, 1)


def quality_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """The mean absolute error."""
    return F.l1_loss(predictions, labels)


def consistency_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """The mean of 1 - cosine to the teacher's embedding."""
    return (1 - F.cosine_similarity(features, teacher, dim=1)).mean()


def total_loss(consistency: Tensor, quality: Tensor, theta: float) -> Tensor:
    """theta * consistency + (1 - theta) * quality."""
    return theta * consistency + (1 - theta) * quality
