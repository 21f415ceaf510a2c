"""Networks and weights of face image quality assessment. Relative imports only: the folder can be vendored.

`model.load("clib-fiqa")` gives a network in eval mode; so does any checkpoint of the systems in `loading.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointError
    from .loading import load

__all__ = ["CheckpointError", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` and `CheckpointError` at their first use: torch is large, and `model.files` does not need it."""
    if name == "load":
        from .loading import load

        return load
    if name == "CheckpointError":
        from .checkpoint import CheckpointError

        return CheckpointError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
