"""A pair list of a folder of identities: mated pairs, at most so many an identity, and random non-mated ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby
from pathlib import PurePath

import numpy as np


def draw_pairs(names: Sequence[str], mated: int, non_mated: int, seed: int) -> list[tuple[str, str, int]]:
    """(name, name, 1 or 0), mated pairs first. The folder of an image is its identity; no pair occurs twice.

    Mated: all pairs of an identity, or `mated` of them drawn without replacement. Non-mated: drawn uniformly over the
    images of different identities, or all where there are no more. Raises ValueError when there are no pairs of a kind.
    """
    rng, names = np.random.default_rng(seed), sorted(names)
    identity = [PurePath(name).parent.as_posix() for name in names]
    rows: list[tuple[str, str, int]] = []
    for _, group in groupby(range(len(names)), key=identity.__getitem__):
        pairs = list(combinations(group, 2))
        chosen = rng.choice(len(pairs), mated, replace=False) if len(pairs) > mated else range(len(pairs))
        rows += [(names[a], names[b], 1) for a, b in (pairs[i] for i in sorted(chosen))]
    sizes = np.unique(identity, return_counts=True)[1]
    available = (len(names) ** 2 - int((sizes.astype(np.int64) ** 2).sum())) // 2
    if not rows or not available:
        raise ValueError(
            f"{len(names)} images of {len(sizes)} identities (folders) make {len(rows)} mated and {available} non-mated"
            " pairs; at least one of each was expected: a sub-folder for each identity, with two images in one of them"
        )
    non_mated = min(non_mated, available)
    drawn: dict[tuple[int, int], None] = {}
    while len(drawn) < non_mated:
        for a, b in rng.integers(len(names), size=(non_mated, 2)).tolist():
            if identity[a] != identity[b] and len(drawn) < non_mated:
                drawn[min(a, b), max(a, b)] = None
    return rows + [(names[a], names[b], 0) for a, b in drawn]
