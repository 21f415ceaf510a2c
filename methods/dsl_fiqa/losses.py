"""The losses of DSL-FIQA's two trainings (Chen et al., CVPR 2024).

The published code holds `charbonnier_loss` and the queue's form of the contrastive loss. The soft proximity mapping was
never published as code, and the paper's equations were not at hand: `proximity_loss` is our reconstruction from its
description, by the soft nearest neighbours of temporal cycle-consistency learning (Dwibedi et al., CVPR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def charbonnier_loss(predicted: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(d^2 + epsilon^2): an L1 loss that is smooth at 0."""
    return ((predicted - target) ** 2 + epsilon**2).sqrt().mean()


def proximity_loss(synthetic: Tensor, real: Tensor, temperature: float, kinds: Tensor | None = None) -> Tensor:
    """Soft proximity mapping in both directions, of representations (M, D) and (N, D) of unit length.

    Each synthetic picture is mapped to the real ones and back, and should come back to itself; and each real picture
    likewise. With the `kinds` (M,) of the synthetic degradations, coming back to any picture of its own kind is enough.
    """
    forth = cycle_loss(synthetic, real, temperature, kinds)
    back = cycle_loss(real, synthetic, temperature)
    return (forth + back) / 2


def cycle_loss(start: Tensor, other: Tensor, temperature: float, kinds: Tensor | None = None) -> Tensor:
    """Mean over `start` (M, D) of -log of the probability to come back from the soft neighbour in `other` (N, D)."""
    neighbours = soft_neighbours(start, other, temperature)  # (M, D)
    home = F.log_softmax(-squared_distances(neighbours, start) / temperature, dim=1)  # (M, M)
    if kinds is None:
        return -home.diagonal().mean()
    same = kinds[:, None] == kinds
    return -home.masked_fill(~same, -torch.inf).logsumexp(dim=1).mean()


def soft_neighbours(start: Tensor, other: Tensor, temperature: float) -> Tensor:
    """For each of `start` (M, D) the mean of `other` (N, D), weighted by a softmax of the proximity: (M, D)."""
    weights = torch.softmax(-squared_distances(start, other) / temperature, dim=1)  # (M, N)
    return weights @ other


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between all pairs of rows, (M, D) and (N, D) -> (M, N). Differentiable where two rows are equal."""
    return (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T


def supervised_contrastive_loss(representations: Tensor, kinds: Tensor, temperature: float) -> Tensor:
    """Pictures of one kind of degradation attract each other, all others repel (Khosla et al., NeurIPS 2020).

    representations: (M, D) of unit length; kinds: (M,). A picture that is the only one of its kind does not count.
    """
    itself = torch.eye(len(kinds), dtype=torch.bool, device=kinds.device)
    logits = (representations @ representations.T / temperature).masked_fill(itself, -torch.inf)
    log_share = F.log_softmax(logits, dim=1)
    positive = (kinds[:, None] == kinds) & ~itself
    counts = positive.sum(1)
    sums = -log_share.masked_fill(~positive, 0.0).sum(1)
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


class QueueLoss(nn.Module):
    """InfoNCE against a queue of earlier representations, the form of the published class.

    `style_queue` is (D, Q), as published. The published class compares the first pair of a batch only; here all do.
    """

    style_queue: Tensor
    place: Tensor

    def __init__(self, width: int, length: int = 2048, temperature: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.temperature = temperature
        random = torch.randn(width, length, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("style_queue", F.normalize(random, dim=0))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the next entry

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """anchors, positives: (B, D) of unit length, pair by pair of the same degradation. Does not fill the queue."""
        positive = (anchors * positives).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, anchors @ self.style_queue.to(anchors.dtype)], dim=1) / self.temperature
        return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    @torch.no_grad()
    def add(self, representations: Tensor) -> None:
        """Put representations (B, D) in the places of the oldest."""
        length = self.style_queue.shape[1]
        newest = representations[-length:]
        places = (self.place + torch.arange(len(newest), device=self.place.device)) % length
        self.style_queue[:, places] = newest.T.to(self.style_queue.dtype)
        self.place.copy_((self.place + len(newest)) % length)
