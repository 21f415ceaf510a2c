"""The state of a run in one file, from which `--resume` continues."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint import read_checkpoint, save_checkpoint
from training.settings import flag


def save_run(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], settings: Any, data: str) -> None:
    """Write the tensors and facts that later steps depend on, with the settings (a dataclass) and the data's hash."""
    written = {**facts, "settings": asdict(settings), "data": data}
    save_checkpoint(path, tensors, {"system": "training-state", "run": json.dumps(written)})


def load_run(
    path: Path, settings: Any, free: Collection[str], data: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `save_run` wrote.

    Raises ValueError when there is no such file, or when it is of other data or of other settings; those in `free` may
    change.
    """
    if not path.is_file():
        raise ValueError(f"--resume: there is no {path}; leave --resume out to begin, or check --output")
    tensors, metadata = read_checkpoint(path)
    facts = json.loads(metadata["run"])
    if facts["data"] != data:
        raise ValueError(f"--resume: the images and their labels are not those that {path} was trained on")
    now = json.loads(json.dumps(asdict(settings)))
    for name, before in facts["settings"].items():
        if name in now and name not in free and now[name] != before:
            raise ValueError(f"--resume: {path} was begun with {flag(name)} {before}, not {now[name]}")
    return tensors, facts
