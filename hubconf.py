"""Entry points of `torch.hub`: each gives a `scoring.Scorer`.

    import torch
    scorer = torch.hub.load(REPO, "clib_fiqa", source="local")      # REPO: a clone of this repository
    scorer.score("face.jpg").quality

The keyword arguments are those of `scoring.Scorer`: weights, device, precision, align, batch_size, swapped_channels.
"""

from __future__ import annotations

from typing import Any

from scoring import Scorer

dependencies = ["torch", "numpy", "PIL", "cv2", "safetensors"]


def clib_fiqa(**settings: Any) -> Scorer:
    """CLIB-FIQA, the shipped model: quality from 0.1 to 0.9 (higher is better) and five factors."""
    return Scorer("clib-fiqa", **settings)


def cr_fiqa(**settings: Any) -> Scorer:
    """CR-FIQA: quality without bounds (higher is better). Its weights do not ship: see docs/inference.md."""
    return Scorer("cr-fiqa", **settings)
