"""The report on people that the default model never saw, on a data folder of sample faces."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from faces.listing import list_images
from model.weights import WEIGHTS
from recipes.default_model.reports import measure
from recipes.default_model.reports.results import as_markdown, read_result

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two test identities of three images each, and one of a training identity that must not be read."""
    images = list_images(SAMPLES)
    for index, image in enumerate(images):
        folder = tmp_path / "faces" / "lfw" / f"Person_{index // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, folder / f"{index}.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "lfw_test_identities.txt").write_text("Person_1\nPerson_0\n")
    return tmp_path


def embed(crops: np.ndarray) -> np.ndarray:
    """An embedding that needs no network: the mean of 8x8 blocks."""
    return crops.reshape(len(crops), 14, 8, 14, 8, 3).mean(axis=(2, 4), dtype=np.float32).reshape(len(crops), -1)


def test_the_report_prints_and_writes_its_tables(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def load_recognizer(judge: str | Path) -> SimpleNamespace:
        asked.append(str(judge))
        return SimpleNamespace(embed=embed)

    monkeypatch.setattr(measure, "load_recognizer", load_recognizer)
    call = ["--data", str(data), "--damaged-faces", "1", "--results", str(tmp_path / "results")]
    assert measure.main(call) == 0
    assert asked == [str(data / "fr/mobilefacenet_foamliu.onnx"), str(data / "fr/faceplugin_fr_feature.onnx"), "dlib"]
    printed = capsys.readouterr().out
    assert printed.startswith("6 images of 2 test identities")
    correlations = read_result(tmp_path / "results" / "rank_correlation.json")
    assert [row[:2] for row in correlations.rows] == [
        ["mobilefacenet_foamliu", 6], ["faceplugin_fr_feature", 6], ["dlib", 6]
    ]  # fmt: skip
    damage = read_result(tmp_path / "results" / "damage.json")
    assert [row[0] for row in damage.rows] == list(measure.KINDS)
    shares = np.array([row[1:] for row in damage.rows], float)
    assert set(np.unique(shares[:, :-1])) <= {0.0, 1.0}  # of one face
    np.testing.assert_allclose(shares[:, -1], shares[:, :-1].mean(axis=1))
    assert shares[:, -1].mean() > 0.9
    for result in (correlations, damage):
        assert as_markdown(result) in printed
        assert result.weights == {"clib-fiqa": WEIGHTS[0].sha256}
        assert result.command == "python -m recipes.default_model.reports.measure"
