"""How far two lists of numbers agree."""

from __future__ import annotations

import numpy as np


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of (N,) and (N,): equal values share the mean of their ranks. 0 when one side is constant."""
    return correlation(_ranks(a), _ranks(b))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of (N,) and (N,). 0 when one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(np.clip((a @ b) / length, -1, 1)) if length > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
