"""Sets in the published layout, their errors, and what is measured on them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dsl_fiqa_parts import SIZE, small_network, small_shape, write_set
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from faces.random_crops import MIRRORED, landmark_places
from methods.dsl_fiqa.data import normalised, read_pictures, read_rated_set, score_pictures
from methods.dsl_fiqa.evaluation import agreement, logistic
from model.checkpoint import save_checkpoint
from model.statistics import rank_correlation

ROOT = Path(__file__).parents[1]


def test_a_set_is_read(tmp_path: Path) -> None:
    rated = read_rated_set(write_set(tmp_path / "set", 4), landmarks=True)
    assert rated.names == ["00.png", "01.png", "02.png", "03.png"]
    assert rated.scores.shape == (4,)
    scaled = normalised(rated.scores)
    assert (scaled.min(), scaled.max()) == (0, 1)
    with pytest.raises(ValueError, match="all scores of the set are 3"):
        normalised(np.full(3, 3.0))


def change(key: str, position: int, value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        labels = json.loads((folder / "label.json").read_text())
        labels[key][position] = value
        (folder / "label.json").write_text(json.dumps(labels))

    return apply


def drop_label(folder: Path) -> None:
    labels = json.loads((folder / "label.json").read_text())
    (folder / "label.json").write_text(json.dumps({key: values[:-1] for key, values in labels.items()}))


def write_labels(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "label.json").write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("MOS", 1, "good"), "the MOS of 01.png is 'good'; a number was expected"),
        (change("MOS", 1, None), "the MOS of 01.png is None"),
        (change("MOS", 1, float("nan")), "the MOS of 01.png is nan"),
        (change("MOS", 1, True), "the MOS of 01.png is True"),
        (change("Image", 1, "../01.png"), "'../01.png' is not the name of a file in img/"),
        (change("Image", 1, "00.png"), "names 00.png more than once"),
        (change("Image", 1, "x.png"), "label.json names x.png, not in .*img: add or take out"),
        (drop_label, "label.json has no score of 03.png of .*img: add or take out"),
        (write_labels("{"), "label.json is no JSON"),
        (write_labels("[]"), "has not the form"),
        (write_labels('{"Image": ["a"], "MOS": []}'), "has 1 names and 0 scores"),
        (write_labels('{"Image": [], "MOS": []}'), "names no picture"),
        (lambda folder: (folder / "label.json").unlink(), "label.json does not exist"),
        (lambda folder: (folder / "landmark" / "02.npy").unlink(), "02.npy missing in .*landmark"),
    ],
)
def test_errors_are_one_clear_line(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = write_set(tmp_path / "set", 4)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        read_rated_set(folder, landmarks=True)
    assert "\n" not in str(error.value)


def test_landmark_file_of_another_picture(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 2)
    np.save(folder / "landmark" / "01.npy", np.full((68, 2), 400.0))
    with pytest.raises(ValueError, match=r"01.npy: 68 of 68 landmarks lie outside .* of another picture"):
        read_pictures(read_rated_set(folder, landmarks=True), small_shape(), "auto", workers=0)


def test_a_broken_picture_is_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 3)
    (folder / "img" / "01.png").write_bytes(b"no picture")
    pictures, bad = read_pictures(read_rated_set(folder, landmarks=True), small_shape(), "auto", workers=0)
    assert pictures.usable == [0, 2]
    assert bad == {str(folder / "img" / "01.png"): "not_an_image"}


@pytest.mark.parametrize("landmarks", ["full", "light", "none"])
def test_epochs_follow_from_the_seed(tmp_path: Path, landmarks: str) -> None:
    rated = read_rated_set(write_set(tmp_path / "set", 7), landmarks=landmarks != "none")
    shape = small_shape(landmarks)  # type: ignore[arg-type]
    kept, _ = read_pictures(rated, shape, "yes", workers=0)
    anew, _ = read_pictures(rated, shape, "no", workers=1)
    first, again, other = (
        list(pictures.epoch(3, (1, epoch), 0.5)) for pictures, epoch in ((kept, 0), (anew, 0), (kept, 1))
    )
    assert [len(batch.rows) for batch in first] == [3, 2, 2]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert sorted(torch.cat([batch.rows for batch in other]).tolist()) == list(range(7))
    assert not torch.equal(torch.cat([b.rows for b in first]), torch.cat([b.rows for b in other]))


def test_a_flip_is_horizontal_and_takes_the_landmarks_along(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 1, size=SIZE)  # of the crop's size, so that the crop is all of it
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(image).save(folder / "img" / "00.png")
    points = np.load(folder / "landmark" / "00.npy")
    pictures, _ = read_pictures(read_rated_set(folder, landmarks=True), small_shape(), "yes", workers=0)
    (plain,), (flipped,) = (list(pictures.epoch(1, (0,), share)) for share in (0.0, 1.0))
    assert np.array_equal(plain.crops[0], image)
    assert np.array_equal(flipped.crops[0], image[:, ::-1])
    moved = (points * (-1, 1) + (SIZE - 1, 0))[MIRRORED]
    np.testing.assert_allclose(flipped.landmarks[0], landmark_places(moved, np.zeros(2, int), SIZE), atol=1e-6)


def test_scores_depend_on_the_picture_alone(tmp_path: Path) -> None:
    rated = read_rated_set(write_set(tmp_path / "set", 3), landmarks=True)
    network = small_network()
    found = [
        score_pictures(network, read_pictures(rated, network.shape, cache, workers)[0], torch.device("cpu"), dtype)
        for cache, workers, dtype in (("yes", 0, torch.float32), ("no", 1, torch.float32))
    ]
    assert np.array_equal(*found)
    assert len(np.unique(found[0])) == 3


def test_figures_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    predicted = np.round(rng.normal(size=60), 1)  # with ties
    opinions = predicted + rng.normal(0, 0.5, 60)
    found = agreement(predicted, opinions, replicates=200)
    assert found["srcc"]["value"] == pytest.approx(spearmanr(predicted, opinions).statistic)
    assert found["plcc"]["value"] == pytest.approx(pearsonr(predicted, opinions).statistic)
    assert found["rmse"]["value"] == pytest.approx(np.sqrt(np.mean((predicted - opinions) ** 2)))
    for figure in found.values():
        low, high = figure["interval"]
        assert low < figure["value"] < high
    assert rank_correlation(predicted, np.ones(60)) == 0


def test_the_logistic_straightens_a_curve() -> None:
    predicted = np.linspace(-4, 4, 80)
    opinions = logistic(predicted, 90.0, 10.0, 0.5, 0.4)
    found = agreement(predicted, opinions, replicates=0)
    assert found["plcc"]["value"] < 0.95
    assert found["plcc_logistic"]["value"] == pytest.approx(1, abs=1e-6)
    assert found["rmse_logistic"]["value"] < 1e-2
    assert found["srcc"] == {"value": pytest.approx(1), "interval": None}


def test_agreement_needs_differences() -> None:
    for predicted in (np.ones(5), np.arange(2.0)):
        with pytest.raises(ValueError, match="at least three pictures"):
            agreement(predicted, np.arange(len(predicted)))


def run_evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "methods.dsl_fiqa.evaluate", *map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_evaluate_writes_the_published_columns(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 5)
    (folder / "img" / "03.png").write_bytes(b"")
    save_checkpoint(tmp_path / "small.safetensors", small_network().to_tensors(), {})
    output = tmp_path / "out" / "predictions.csv"
    result = run_evaluate(folder, "--weights", tmp_path / "small.safetensors", "--output", output, "--workers", 0)
    assert result.returncode == 1, result.stderr
    assert "left out: " in result.stderr
    rows = list(csv.DictReader(output.open()))
    assert list(rows[0]) == ["Name", "Predict", "GT", "Error"]
    assert [row["Name"] for row in rows] == [f"{index:02}.png" for index in range(5)]
    assert (rows[3]["Predict"], rows[3]["Error"]) == ("", "")
    assert float(rows[0]["Error"]) == pytest.approx(float(rows[0]["Predict"]) - float(rows[0]["GT"]), abs=1e-6)
    figures = json.loads(result.stdout)
    assert figures == json.loads(output.with_name("predictions.csv.json").read_text())
    assert figures["pictures"] == 4
    assert -1 <= figures["srcc"]["interval"][0] <= figures["srcc"]["value"] <= figures["srcc"]["interval"][1] <= 1


def test_a_missing_degradation_encoder_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 3)
    save_checkpoint(tmp_path / "IQA.safetensors", small_network(encoder=False).to_tensors(), {})
    arguments = [folder, "--weights", tmp_path / "IQA.safetensors", "--output", tmp_path / "p.csv"]
    result = run_evaluate(*arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "holds no degradation encoder: give --degradation-encoder DE.pt" in result.stderr
    result = run_evaluate(*arguments, "--degradation-encoder", tmp_path / "DE.pt")
    assert result.returncode == 2
    assert "DE.pt: no such file" in result.stderr
