"""Cross-fitting: every identity is scored once, by a model that did not see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe as pictures
from PIL import Image
from test_multi_level import write_start_of_small_tower

from evaluation.scores import read_scores
from labels.label_table import Label, read_labels, write_labels
from recipes.default_model import recipe
from recipes.default_model.reports import cross_fit
from recipes.default_model.reports.cross_fit import fold_of

CELEBA, LFW = ["7201", "7202", "7203", "7218"], ["Ann", "Bob"]


def test_folds_are_a_partition() -> None:
    names = [str(i) for i in range(149)]
    folds = fold_of([*names, *names], 5, 1)
    assert folds.keys() == set(names)
    assert set(np.bincount(list(folds.values()))) == {29, 30}
    assert folds == fold_of(names[::-1], 5, 1) != fold_of(names, 5, 2)
    for wrong in (1, 150):
        with pytest.raises(ValueError, match="expected from 2 to 149"):
            fold_of(names, wrong, 1)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Four CelebA identities of two images, one of whom is not in the table, two of LFW, and start weights."""
    faces, labels = tmp_path / "data" / "faces" / "celeba", []
    for index, name in enumerate([*CELEBA, *LFW]):
        for image in ("a.png", "b.png"):
            path = faces / name / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.mirror_image(2 * index + (image == "b.png"), 112)).save(path)
            if name != "7218":
                row = (0.1 + 0.1 * index, index % 3, index % 3, index % 2, 1, 1)
                labels.append(Label(f"../data/faces/celeba/{name}/{image}", *row, name, "ok"))
    (tmp_path / "tables").mkdir()
    write_labels(tmp_path / "tables" / "train.tsv", labels)
    write_start_of_small_tower(tmp_path / "tables").rename(tmp_path / "tables" / "tiny.safetensors")
    rows = [f"faces/celeba/{name}/a.png\tfaces/celeba/{name}/b.png\t1" for name in CELEBA]
    rows.append("faces/celeba/7201/a.png\tfaces/celeba/7202/a.png\t0")
    (tmp_path / "data" / "pairs").mkdir()
    (tmp_path / "data" / "pairs" / "celeba_dev.tsv").write_text("\n".join(["path_a\tpath_b\tsame", *rows, ""]))
    output = str(tmp_path / "out" / "scores.csv")
    return ["--data", str(tmp_path / "data"), "--tables", str(tmp_path / "tables"), "--output", output, "--folds", "2"]


def test_nobody_is_scored_by_a_model_that_saw_them(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[str | None]] = []
    owners = [label.identity for label in read_labels(tmp_path / "tables" / "train.tsv")]
    fit = recipe.fit

    def noted(config: Any, faces: Any) -> Any:
        trained.append({owners[row] for row in faces.images.usable.tolist()})
        return fit(config, faces)

    monkeypatch.setattr(recipe, "fit", noted)
    assert cross_fit.main(flags) == 0
    folds = fold_of(CELEBA, 2, 323)
    for fold in range(2):
        assert trained[fold] == {name for name in [*CELEBA[:3], *LFW] if folds.get(name) != fold}
    found = read_scores(tmp_path / "out" / "scores.csv")
    assert len(found) == 8  # the identity that may never train among them
    assert all(0.1 <= score <= 0.9 for score in found.values())


def test_levels_are_computed_once(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cross_fit.main(flags) == 0
    first = (tmp_path / "out" / "scores.csv").read_text()
    def fails(*arguments: Any) -> None:
        raise AssertionError("the levels are in the files")

    monkeypatch.setattr(recipe, "frozen_levels", fails)
    assert cross_fit.main(flags) == 0
    assert (tmp_path / "out" / "scores.csv").read_text() == first
    labels = read_labels(tmp_path / "tables" / "train.tsv")
    write_labels(tmp_path / "tables" / "train.tsv", labels[1:])  # other images
    with pytest.raises(AssertionError, match="in the files"):
        cross_fit.main(flags)


def test_other_pixels_under_the_same_path_have_levels_of_their_own(flags: list[str], tmp_path: Path) -> None:
    assert cross_fit.main(flags) == 0
    first = (tmp_path / "out" / "scores.csv").read_text()
    faces = tmp_path / "data" / "faces" / "celeba"
    for path in sorted(faces.glob("*/a.png")):
        Image.fromarray(np.array(Image.open(path))[::-1].copy()).save(path)
    assert cross_fit.main(flags) == 0
    second = (tmp_path / "out" / "scores.csv").read_text()
    assert second != first
    for file in (tmp_path / "tables").glob("*.levels"):
        file.unlink()
    assert cross_fit.main(flags) == 0
    assert (tmp_path / "out" / "scores.csv").read_text() == second


def test_what_goes_wrong_is_said(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cross_fit.main([*flags, "--folds", "5"]) == 2
    assert "5 folds of 4 identities" in capsys.readouterr().err
