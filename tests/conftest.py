"""Shared fixtures: the repository root on the path, golden files, and the optional shared data."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "golden")]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would children


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers computed with the published code, and `recipe.py` for deterministic weights and images."""
    return TESTS / "golden"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch in this process; a module asks for it by `pytestmark`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """A CLIB-FIQA of width 8 with its text features, 224 pixels."""
    from recipe_tensors import save_tiny_clib_fiqa

    return save_tiny_clib_fiqa(tmp_path_factory.mktemp("weights") / "tiny.safetensors", golden)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real faces and face recognition models, which are not in the repository; the test is skipped without them."""
    folder = TESTS.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the data folder beside the repository (docs/data.md)")
    return folder
