"""Scoring face images: `Scorer("clib-fiqa").score("face.jpg")` gives a `Score` with its reasons."""

from .scorer import Score, Scorer

__all__ = ["Score", "Scorer"]
