"""The ablation's bookkeeping; its training is train.py's (tests/test_multi_level.py)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config_train import TrainConfig
from labels.label_table import Label, write_labels
from methods.clib_fiqa.data import LabelledFaces
from model.preprocessing import FACE_PREPROCESSING
from recipes.default_model.recipe import RECIPE
from recipes.default_model.reports import ablation
from recipes.default_model.reports.ablation import VARIANTS, shuffled, variant_rows, variants
from training.images import Images


def test_every_variant_is_a_training_of_its_own() -> None:
    base = TrainConfig(**RECIPE)
    assert len({(table, replace(base, **differences)) for table, differences in VARIANTS.values()}) == len(VARIANTS)
    assert VARIANTS["+ confidence calibration (recipe)"][1] == {}


def test_tables_of_anchors_take_the_place_of_the_variants() -> None:
    found = variants(Namespace(anchors=["a=x.tsv", "b=y.tsv"], noise=[]))
    assert {name: table for name, (table, _) in found.items()} == {"a": "x.tsv", "b": "y.tsv"}
    assert variants(Namespace(anchors=[], noise=[])) is VARIANTS
    with pytest.raises(ValueError, match="--anchors a: NAME=TABLE was expected"):
        variants(Namespace(anchors=["a"], noise=[]))


def test_the_table_holds_means_over_cells_and_intervals_over_seeds() -> None:
    seeds = [{"celeba_dev dlib 0.01": value, "lfw_test foamliu 0.01": value + 0.2} for value in (0.5, 0.6, 0.7)]
    half = 4.302653 * np.std([0.5, 0.6, 0.7], ddof=1) / 3**0.5
    row = next(variant_rows([("recipe", seeds)]))
    assert row == ["recipe", *(pytest.approx([mean, half]) for mean in (0.7, 0.6, 0.8, 0.6))]


def test_wrong_anchors_are_those_of_other_images_of_the_chosen_identities() -> None:
    quality, rows = torch.arange(100.0), torch.arange(90)  # ten rows do not train
    identities = [f"p{row // 10}" for row in range(100)]
    assert shuffled(quality, identities, rows, 0.0, 1) is quality
    found = shuffled(quality, identities, rows, 0.34, 1)
    changed = {identities[row] for row in (found != quality).nonzero()[:, 0].tolist()}
    assert len(changed) == 3
    assert "p9" not in changed
    assert sorted(found.tolist()) == quality.tolist()
    assert not torch.equal(found, shuffled(quality, identities, rows, 0.34, 2))
    assert list(variants(Namespace(anchors=[], noise=[0.3]))) == list(VARIANTS)[:3]


class Trainings:
    """In the place of the training and the judgement: each training counts, and gives a number of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.count, self.levels, self.similarity = 0, torch.zeros(4, 2, 3), 0.5
        self.variants: dict[str, tuple[str, dict[str, Any]]] = {"recipe": ("train.tsv", {})}
        files = {"tables": folder, "start": folder / "start.safetensors", "output": folder / "out"}
        self.args = Namespace(**files, seeds=2, anchors=[], noise=[], originals=False)
        self.args.start.write_bytes(b"weights")
        self.write_table(0.5)
        monkeypatch.setattr(ablation, "variants", lambda args: self.variants)
        monkeypatch.setattr(ablation, "training_faces", lambda config: self.faces())
        monkeypatch.setattr(ablation, "fit", lambda config, faces: self.fit())
        monkeypatch.setattr(ablation, "Bench", lambda args, config: self)

    def write_table(self, quality: float) -> None:
        rows = [Label(f"faces/Ann/{i}.jpg", quality, 2, 2, 1, 1, 1, "Ann", "ok") for i in range(4)]
        write_labels(self.args.tables / "train.tsv", rows)

    def faces(self) -> LabelledFaces:
        images = Images([""] * 4, torch.arange(4), FACE_PREPROCESSING, 0, self.levels)
        return LabelledFaces(images, torch.zeros(4), torch.zeros(4, 5))

    def fit(self) -> int:
        self.count += 1
        return self.count

    def judge(self, model: int) -> dict[str, float]:
        return {"celeba_dev dlib 0.01": float(model)}

    def fingerprint(self) -> bytes:
        return str(self.similarity).encode()

    def run(self) -> int:
        """How many trainings this call of the ablation needed."""
        before = self.count
        list(ablation.results(self.args))
        return self.count - before


def test_a_finished_run_is_known_by_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings(monkeypatch, tmp_path)
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.variants = {"recipe": ("train.tsv", {"lr": 1e-5})}  # the same name, other settings
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.write_table(0.6)  # the same name of the table
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.args.start.write_bytes(b"other weights")
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.levels = trainings.levels + 1  # other images
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.similarity = 0.6  # another judge
    assert (trainings.run(), trainings.run()) == (2, 0)
    trainings.args.seeds = 3
    assert (trainings.run(), trainings.run()) == (1, 0)
