"""Same input, same rows: whatever pictures are beside one, and however many workers and threads there are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faces.reader import read_image
from scoring import Score, Scorer

CLOSE = 1e-6
FACE = read_image(Path(__file__).parents[1] / "samples" / "astronaut.png")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    for number in range(11):
        coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)).save(folder / f"{number:02}.png")
    for number, scale in enumerate((1.7, 2.3, 3.1)):  # photographs, in which the face has to be found
        matrix = np.array([[scale, 0.1, 40.3], [-0.1, scale, 51.9]])
        photograph = cv2.warpAffine(FACE, matrix, (420, 440), flags=cv2.INTER_CUBIC, borderValue=(90, 120, 90))
        Image.fromarray(photograph).save(folder / f"photograph{number}.png")
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return sorted(map(str, Path(folder).iterdir()))


def scored(paths: list[str], batch_size: int, workers: int = 0) -> list[Score]:
    return list(Scorer("clib-fiqa", device="cpu", align="auto", batch_size=batch_size).stream(paths, workers))


@pytest.fixture(scope="module")
def expected(paths: list[str]) -> list[Score]:
    return scored(paths, 4)


def same(found: list[Score], expected: list[Score]) -> bool:
    if [(score.path, score.status) for score in found] != [(score.path, score.status) for score in expected]:
        return False
    for one, other in zip(found, expected, strict=True):
        if one.quality is not None and other.quality is not None and abs(one.quality - other.quality) > CLOSE:
            return False
        if one.factors.keys() != other.factors.keys():
            return False
        for factor, levels in one.factors.items():
            if any(abs(p - other.factors[factor][level]) > CLOSE for level, p in levels.items()):
                return False
    return True


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_sizes(paths: list[str], expected: list[Score], batch_size: int) -> None:
    assert same(scored(paths, batch_size), expected)
    assert sum(score.status == "ok" for score in expected) == 13


def test_workers(paths: list[str], expected: list[Score]) -> None:
    assert same(scored(paths, 4, workers=2), expected)


def test_order(paths: list[str], expected: list[Score]) -> None:
    assert same(scored(paths[::-1], 4)[::-1], expected)


def test_threads(paths: list[str], expected: list[Score]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert same(scored(paths, 4), expected)
    finally:
        torch.set_num_threads(before)


def test_another_score_is_noticed(expected: list[Score]) -> None:
    changed = [*expected[:-1], Score(expected[-1].path, "ok", (expected[-1].quality or 0) + 1e-5, expected[-1].factors)]
    assert not same(changed, expected)
