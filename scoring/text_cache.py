"""Loading a network to score with. A published CLIB-FIQA holds a text tower, but no features of the sentences."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from model import load
from model.checkpoint import save_checkpoint, sha256_of
from model.clib_fiqa import ClibFiqa
from model.prompts import prompts_hash
from model.weights import FOLDER, find_weights


def load_network(name_or_path: str | Path) -> Any:
    """`model.load` on the CPU, but the sentences of a published CLIB-FIQA are encoded only once.

    Scoring needs the image tower and the text features. They are stored in weights/cache, under the sha256 of the
    checkpoint and of the sentences. When that folder cannot be written, they are computed every time.
    """
    path = find_weights(name_or_path)
    if path.suffix == ".safetensors":  # ours: they hold the text features
        return load(path)
    kept = FOLDER / "cache" / f"{sha256_of(path)[:16]}-{prompts_hash()[:8]}.safetensors"
    if kept.is_file():
        return load(kept)
    network = load(path)
    if isinstance(network, ClibFiqa):
        preprocessing = network.preprocessing.to_json()
        metadata = {"system": "clib-fiqa", "prompts": prompts_hash(), "preprocessing": preprocessing}
        with suppress(OSError):
            save_checkpoint(kept, network.to_tensors(text_tower=False), metadata)
    return network
