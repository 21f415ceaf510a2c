"""The worked example of docs/adding_a_method.md runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import CheckpointError
from model.fast import accelerate
from model.preprocessing import FACE_PREPROCESSING

TEXT = (Path(__file__).parents[1] / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the module of the network defines, as if it stood in model/."""
    found: dict[str, Any] = {"__name__": "model.tiny_fiqa", "__package__": "model"}
    exec(BLOCKS[0], found)
    return found


def test_the_network_is_built_from_its_tensors(names: dict[str, Any]) -> None:
    network = names["TinyFiqa"](width=4)
    again = names["TinyFiqa"].from_tensors(network.state_dict())
    images = FACE_PREPROCESSING.normalise(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))
    assert again(images).shape == (2,)
    torch.testing.assert_close(again(images), network.eval()(images))
    with pytest.raises(CheckpointError, match=r"quality\.bias"):
        names["TinyFiqa"].from_tensors({key: value for key, value in network.state_dict().items() if "bias" not in key})


def test_it_scores(names: dict[str, Any]) -> None:
    contract = pytest.importorskip("scoring.contract")
    face_crops = pytest.importorskip("scoring.face_crops")
    found = names | vars(contract) | vars(face_crops) | {"torch": torch, "accelerate": accelerate, "partial": partial}
    block = next(block for block in BLOCKS if "class TinyFiqaScoring" in block)
    exec(f"from __future__ import annotations\n{block}", found)
    scoring = found["TinyFiqaScoring"](names["TinyFiqa"](4).eval(), torch.float32, torch.device("cpu"), "auto")
    prepared = scoring.prepare(np.zeros((112, 112, 3), np.uint8))
    crops = torch.from_numpy(np.stack([prepared.crops] * 3))
    with torch.inference_mode():
        columns = scoring.predict(contract.Batch(crops, [None] * 3))
    assert columns.quality.shape == (3,)
