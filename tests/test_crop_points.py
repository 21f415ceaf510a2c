"""Points of aligned crops, seen by the reference's detector (its file is in the data folder) and mapped to the
reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faces.template import ARCFACE_POINTS, mapped, similarity_transform
from recipes.raw_photographs import train_points
from recipes.raw_photographs.crop_points import aligned, crop_points, ridge
from recipes.raw_photographs.scrfd import open_scrfd
from recipes.raw_photographs.train_points import EACH_OF_CROP, Source, composed, originals, similarity, with_points


def test_a_ridge_finds_a_linear_function_and_shrinks_to_the_mean() -> None:
    rng = np.random.default_rng(0)
    x, truth = rng.normal(0, 100, (500, 6)), rng.normal(size=(6, 3))
    weights, constant = ridge(x, x @ truth + 7)
    np.testing.assert_allclose(x @ weights + constant, x @ truth + 7, atol=0.1)
    weights, constant = ridge(x / 1e6, x @ truth + 7)
    np.testing.assert_allclose(x / 1e6 @ weights + constant, np.tile((x @ truth + 7).mean(axis=0), (500, 1)), rtol=1e-3)


def test_aligned_points_keep_their_shape_alone() -> None:
    points = ARCFACE_POINTS + np.random.default_rng(0).normal(0, 3, (5, 2))
    moved = mapped(points, composed(similarity(70, 2.5, np.array([40, -9])), np.eye(2, 3)))
    np.testing.assert_allclose(aligned(moved), aligned(points), atol=1e-9)
    np.testing.assert_allclose(similarity_transform(aligned(points), ARCFACE_POINTS), np.eye(2, 3), atol=1e-9)


def test_points_come_to_crops_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A crop that is not seen keeps the template's; the offset of a crop is added to what is seen."""
    header = "path" + "".join(f"\t{axis}{i}" for i in range(1, 6) for axis in "xy")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "points.tsv").write_text(f"{header}\na/b/1.jpg" + "\t5" * 10 + "\n")
    seen, unseen = tmp_path / "faces" / "a" / "b" / "1.jpg", tmp_path / "faces" / "a" / "b" / "2.jpg"
    shape = ARCFACE_POINTS + 1
    asked = []

    def found(data: Path, paths: list[Path], known: dict[Path, np.ndarray], workers: int) -> dict[Path, np.ndarray]:
        asked.append((paths, list(known)))
        return {seen: shape}

    monkeypatch.setattr(train_points, "crop_points", found)
    sources = [
        Source("crop", 0, seen, ARCFACE_POINTS + 0.5), Source("crop", 0, unseen), Source("sideways", 0, seen),
        Source("pattern", 0),
    ]  # fmt: skip
    crop, *others = with_points(sources, tmp_path, 1)
    assert asked == [([seen, unseen], [seen])]
    np.testing.assert_allclose(crop.points, shape + 0.5)
    assert crop.each == EACH_OF_CROP
    assert others == sources[1:]


def test_without_the_detector_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*scrfd_2\.5g_bnkps\.onnx; .* was expected"):
        open_scrfd(tmp_path)


def test_points_of_crops_lie_near_the_reference(shared: Path) -> None:
    """Those of crops from which nothing was learned: much nearer than the template's own points."""
    data = shared / "data"
    rows = list(originals(data))[::12]
    paths = [data / "faces" / relative for relative, _ in rows]
    truth = {path: aligned(points) for path, (_, points) in zip(paths, rows, strict=True)}
    known = {path: points for path, (_, points) in zip(paths[::2], rows[::2], strict=True)}
    found = crop_points(data, paths, known, 2)
    others = [path for path in paths[1::2] if path in found]
    assert len(others) > 40
    errors = [np.linalg.norm(found[path] - truth[path], axis=1).mean() for path in others]
    without = [np.linalg.norm(ARCFACE_POINTS - truth[path], axis=1).mean() for path in others]
    assert np.mean(errors) < 0.7 * np.mean(without)
    for path in found:
        np.testing.assert_allclose(similarity_transform(found[path], ARCFACE_POINTS), np.eye(2, 3), atol=1e-9)
