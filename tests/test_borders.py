"""Cross-fitting over people, from which the border of the expression comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labels.label_table import Label
from recipes.default_model.reports import borders


def test_a_person_is_an_identity_a_subject_or_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"illumination": [{"path": "factors/y/1.jpg", "subject": "s3"}],
            "expression": [{"path": "factors/y/2.jpg", "subject": "s3"}]}  # fmt: skip
    monkeypatch.setattr(borders, "factor_rows", lambda data, name, held_out: rows.get(name, []))
    labels = [Label(path, None, 2, 2, 1, 1, 1, identity) for path, identity in
              [("a", "Ann"), ("b", None), ("c", None), ("d", None)]]  # fmt: skip
    sources = ["faces/lfw/Ann/1.jpg", "factors/y/1.jpg", "factors/y/2.jpg", "faces/lfw/Bob/1.jpg"]
    assert borders.people_of(Path("data"), labels, sources) == ["Ann", "s3", "s3", "Bob"]


def test_a_face_that_is_in_the_table_twice_counts_once() -> None:
    kinds = {"a": "smiles", "b": "smiles", "c": "anger", "d": "anger"}
    sources, values = ["a", "b", "c", "c", "d", "other"], np.array([0.6, 0.1, 0.9, 0.9, 0.29, 0.7])
    shares = [0.5, 0.45, 0.4, 0.35, 0.3, 0.28]
    assert borders.borders() == shares
    assert list(borders.border_rows(kinds, sources, values)) == [
        ["smiles", 2, *[0.5] * 6],
        ["anger", 2, *[0.5] * 5, 1.0],
    ]


def test_kinds_of_faces(shared: Path, tmp_path: Path) -> None:
    """With the mouths of a few smiles known: the others are not looked up."""
    data = shared / "data"
    smiles = [row["path"] for row in borders.factor_rows(data, "expression_lfw", held_out=False)
              if row["condition"] == "happiness"]  # fmt: skip
    faces = np.full((len(smiles), 68, 2), np.nan, np.float32)
    faces[:2, 36:42], faces[:2, 42:48] = (0, 0), (100, 0)
    faces[:2, 48:], faces[0, 65:68] = (50, 50), (50, 90)  # lips 40 apart in the first face, closed in the second
    faces[:2, :36] = 0
    np.savez(tmp_path / "landmarks.npz", paths=np.array(smiles), points=faces)
    kinds = borders.kinds_of(data, tmp_path / "landmarks.npz")
    assert kinds["expression"][smiles[0]] == "open laughter"
    assert kinds["expression"][smiles[1]] == "everyday smiles"
    assert smiles[2] not in kinds["expression"]
    assert set(kinds["expression"].values()) == {"anger, surprise", "neutral faces", "everyday smiles", "open laughter"}
    assert set(kinds["illumination"].values()) == {"light to 20°", "light from 50°", "Yale's side light"}
