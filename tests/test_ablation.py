"""The ablation's bookkeeping; its training is train.py's (tests/test_multi_level.py)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from config_train import TrainConfig
from recipes.default_model.recipe import RECIPE
from recipes.default_model.reports.ablation import VARIANTS, table_of, variants


def test_every_variant_is_a_training_of_its_own() -> None:
    base = TrainConfig(**RECIPE)
    assert len({(table, replace(base, **differences)) for table, differences in VARIANTS.values()}) == len(VARIANTS)
    assert VARIANTS["+ confidence calibration (recipe)"][1] == {}


def test_tables_of_anchors_take_the_place_of_the_variants() -> None:
    found = variants(Namespace(anchors=["a=x.tsv", "b=y.tsv"]))
    assert {name: table for name, (table, _) in found.items()} == {"a": "x.tsv", "b": "y.tsv"}
    assert variants(Namespace(anchors=[])) is VARIANTS
    with pytest.raises(ValueError, match="--anchors a: NAME=TABLE was expected"):
        variants(Namespace(anchors=["a"]))


def test_the_table_holds_means_over_cells_and_intervals_over_seeds() -> None:
    seeds = [{"celeba_dev dlib 0.01": value, "lfw_test foamliu 0.01": value + 0.2} for value in (0.5, 0.6, 0.7)]
    half = 4.302653 * np.std([0.5, 0.6, 0.7], ddof=1) / 3**0.5
    row = table_of([("recipe", seeds)]).splitlines()[2]
    assert row == "| recipe | " + " | ".join(f"{mean:.3f} ± {half:.3f}" for mean in (0.7, 0.6, 0.8, 0.6)) + " |"
