"""Networks and weights of face image quality assessment. Relative imports only: the folder can be vendored.

`model.load("clib-fiqa")` gives a network in eval mode; so does any checkpoint of the systems in `loading.py`.
"""

from .checkpoint import CheckpointError
from .loading import load

__all__ = ["CheckpointError", "load"]
