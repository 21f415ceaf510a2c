"""Folders of synthetic identities, record files, and short runs of CR-FIQA's training on them."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import recipe
import torch
from PIL import Image

from methods.cr_fiqa.config import Config
from model.iresnet import IResNet

ROOT = Path(__file__).parents[1]
MAGIC = struct.pack("<I", 0xCED7230A)
SIZE = 32  # of the pictures
TINY: dict[str, Any] = {
    "batch_size": 8,
    "epochs": 2,
    "lr": 2.0,
    "dropout": 0.0,
    "milestones": (),
    "num_workers": 0,
    "device": "cpu",
}


def tiny(data: Path, output: Path, **settings: Any) -> Config:
    """A quick run."""
    folders = {"data": (str(data),), "start_weights": str(data / "start.pth"), "output": str(output)}
    return Config(**(TINY | folders | settings))


def tiny_network(seed: int = 0, **settings: Any) -> IResNet:
    """A network for pictures of 32 pixels that makes a step in milliseconds."""
    torch.manual_seed(seed)
    return IResNet((1, 1, 1, 1), (16, 16, 16, 16), image_size=SIZE, **settings)


def write_start(folder: Path) -> Path:
    """Start weights beside the pictures, where `tiny` looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tiny_network().state_dict(), folder / "start.pth")
    return folder


def picture(identity: int, number: int) -> np.ndarray:
    """RGB uint8 (32, 32, 3): the pictures of an identity are alike but for some noise."""
    noise = np.random.default_rng((identity, number)).integers(0, 40, (SIZE, SIZE, 3))
    return np.clip(recipe.mirror_image(identity, SIZE) * 0.8 + noise, 0, 255).astype(np.uint8)


def write_identities(folder: Path, identities: int = 4, images: int = 4) -> Path:
    """Sub-folders id10, id11, ... with pictures."""
    for identity in range(identities):
        (folder / f"id{10 + identity}").mkdir(parents=True)
        for number in range(images):
            Image.fromarray(picture(identity, number)).save(folder / f"id{10 + identity}" / f"{number}.png")
    return write_start(folder)


def encoded(image: np.ndarray) -> bytes:
    """As JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def record(content: bytes) -> bytes:
    """A record, split where the magic number occurs at a multiple of four bytes."""
    cuts = [place for place in range(0, len(content) - 3, 4) if content[place : place + 4] == MAGIC]
    edges = [-4, *cuts, len(content)]
    parts = [content[start + 4 : end] for start, end in pairwise(edges)]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def write_records(folder: Path, contents: Sequence[bytes], index: bool = True) -> Path:
    """train.rec and train.idx of these contents, numbered in their order."""
    folder.mkdir(parents=True)
    lines, offset = [], 0
    with open(folder / "train.rec", "wb") as file:
        for number, content in enumerate(contents):
            lines.append(f"{number}\t{offset}\n")
            offset += file.write(record(content))
    if index:
        (folder / "train.idx").write_text("".join(lines))
    return write_start(folder)


def run_training(arguments: Sequence[object], processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The trainer as a person runs it, each process on one thread."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "methods.cr_fiqa.train", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300
    )
