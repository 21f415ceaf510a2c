"""A small CLIP, synthetic pictures with random labels, and short runs of train.py on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import recipe
import torch
import torch.distributed as dist
from PIL import Image
from recipe_tensors import golden_shapes, recipe_fill
from safetensors.torch import save_file

from labels.label_table import Label, write_labels
from training import processes

ROOT = Path(__file__).parents[1]


def write_start(folder: Path, golden: Path) -> Path:
    """A tiny CLIP with recipe weights for pictures of 64 pixels, which train in a twelfth of the time of 224."""
    shapes = golden_shapes(golden / "clip_tiny_keys.json")
    shapes["visual.attnpool.positional_embedding"] = (1 + 2 * 2, shapes["visual.attnpool.positional_embedding"][1])
    save_file(recipe_fill(shapes), folder / "start.safetensors")
    return folder / "start.safetensors"


def write_faces(folder: Path, count: int) -> Path:
    """`count` pictures, and a label table with random labels."""
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(recipe.mirror_image(index, 64)).save(folder / f"{index}.png")
    factors = rng.integers((3, 3, 2, 2, 2), size=(count, 5)).tolist()  # blur, pose, expression, illumination, occlusion
    write_labels(folder / "labels.tsv", [Label(f"{i}.png", rng.random(), *row) for i, row in enumerate(factors)])
    return folder / "labels.tsv"


def join(rank: int, count: int, file: Path) -> None:
    """Join a group of `count` processes on this machine, which meet in a file that must not exist before."""
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", store=dist.FileStore(str(file), count), rank=rank, world_size=count)


def leave(count: int) -> None:
    """The last act of one of `count` processes. It ends without Python's own shutdown, in which a thread of gloo that
    still holds a tensor would abort the process."""
    if count > 1:
        processes.stop()
        sys.stdout.flush()
        os._exit(0)


def run_train(
    arguments: Sequence[object], launcher: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """train.py as a person runs it, on one thread."""
    command = [*launcher, str(ROOT / "train.py"), "--device", "cpu", "--num-workers", "0", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def interrupted(script: ModuleType, config: Any, after: int, saver: ModuleType | None = None) -> None:
    """A run of a training script that ends by Ctrl-C when it has saved so many states, or when the module `saver` has,
    such as the loop, which saves within an epoch."""
    saver = saver or script
    save, saved = saver.save_state, []

    def save_and_stop(*arguments: Any) -> None:
        save(*arguments)
        saved.append(1)
        if len(saved) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            script.train(config)


def train_by_one_and_two(module: str, flags: Sequence[object], folder: Path) -> None:
    """Run a training command in one process and, under torchrun, in two: FOLDER/one and FOLDER/two."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, "-m", module, *map(str, flags), "--output", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
