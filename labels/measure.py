"""Measuring many images in parts, so that an interrupted measurement goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faces.workers import Loaded, load_batches
from model.files import replacing, write_text

PART_BATCHES = 8   # so many batches are kept together: what an interrupted run loses at most

Columns = dict[str, np.ndarray]   # status (N,) str, embeddings (N, D) float32, labels (N, 5) int8: one row an image


def start_parts(folder: Path, settings: Mapping[str, Any], resume: bool) -> Path:
    """The folder for the parts of a measurement: emptied, or with `resume` as an earlier run left it.

    Raises ValueError when that run had other settings.
    """
    record = folder / "settings.json"
    if folder.exists() and not (resume and record.is_file()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if changed := [name for name in settings if before.get(name) != json.loads(json.dumps(settings[name]))]:
            raise ValueError(f"cannot resume: {', '.join(changed)} changed since the interrupted run ({record}); "
                             "run with the same settings, or without --resume to start anew")
    write_json(record, settings)
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def measure(
    folder: Path,
    names: Sequence[str],
    prepare: Callable[[np.ndarray], Any],
    compute: Callable[[Sequence[Loaded[Any]]], Columns],
    parts: Path,
    batch_size: int,
    workers: int,
) -> Columns:
    """The columns of the pictures with these names below a folder: `prepare` sees each picture, in a worker process,
    `compute` each batch of what it returned.

    Finished parts are files in the folder `parts`; those of an earlier run are read instead of being measured again,
    with the same result to the bit, since parts end where batches do. A bar on stderr shows the progress.
    """
    from tqdm import tqdm

    parts.mkdir(parents=True, exist_ok=True)
    done = [_read(file) for file in sorted(parts.glob("*.npz"))]
    start = sum(len(part["status"]) for part in done)
    batches: list[Columns] = []
    with tqdm(total=len(names), initial=start, desc=parts.name, unit=" faces", disable=None) as progress:
        for loaded in load_batches([str(folder / name) for name in names[start:]], prepare, batch_size, workers):
            batches.append(compute(loaded))
            progress.update(len(loaded))
            if len(batches) == PART_BATCHES:
                done.append(_join(batches))
                _write(parts / f"{len(done):06}.npz", done[-1])
                batches.clear()
    return _join([*done, *batches])


def _join(columns: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def _read(path: Path) -> Columns:
    with np.load(path) as arrays:
        return dict(arrays)


def _write(path: Path, columns: Columns) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **columns)
