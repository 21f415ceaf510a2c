"""Is 0.63 good? Percentiles in a checkpoint, and thresholds for a wanted discard rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import recipe
from PIL import Image
from recipe_tensors import save_tiny_clib_fiqa

import evaluate
import inference
from evaluation.threshold import pick_threshold
from model.checkpoint import read_checkpoint
from model.percentiles import Percentiles
from recipes.default_model import percentiles as script
from scoring import Score, Scorer
from scoring.tables import row_of, write_csv


def test_a_percentile_is_the_share_below() -> None:
    quality = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    table = Percentiles.of_set("a set", quality)
    assert table.images == 4000
    assert len(table.quality) == 101
    for value in (0.3, 0.5, 0.62):
        assert table.percentile(value) == pytest.approx(100 * np.mean(quality < value), abs=0.2)
    assert (table.percentile(-9), table.percentile(9)) == (0, 100)
    for share in (0.01, 0.05, 0.275):
        assert np.mean(quality < table.threshold(share)) == pytest.approx(share, abs=2e-3)
    assert Percentiles.from_metadata({"percentiles": table.to_json()}) == table
    assert Percentiles.from_metadata({}) is None
    for bad in (np.array([]), np.array([0.5, np.nan])):
        with pytest.raises(ValueError, match="'a set'"):
            Percentiles.of_set("a set", bad)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("faces")
    paths = [str(folder / f"{seed}.png") for seed in range(7)]
    for seed, path in enumerate(paths):
        Image.fromarray(recipe.mirror_image(seed)).save(path)
    return paths


@pytest.fixture
def weights(tmp_path: Path, golden: Path) -> Path:
    return save_tiny_clib_fiqa(tmp_path / "tiny.safetensors", golden)


def test_weights_tell_where_a_score_stands(
    weights: Path, faces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, metadata = read_checkpoint(weights)
    plain = Scorer(weights=weights)
    assert plain.percentiles is plain.score(faces[0]).percentile is None
    assert inference.main([faces[0], "--weights", str(weights)]) == 0
    printed = capsys.readouterr().out.splitlines()

    assert script.main([str(weights), *faces, "--set", "seven faces"]) == 0
    after, new = read_checkpoint(weights)
    assert {key: tensor.tolist() for key, tensor in before.items()} == {key: t.tolist() for key, t in after.items()}
    assert new.items() > metadata.items()
    capsys.readouterr()

    scorer = Scorer(weights=weights)
    scores = sorted(scorer.score(faces), key=lambda score: score.quality)
    assert [score.percentile for score in scores] == pytest.approx([100 * i / 6 for i in range(7)], abs=0.5)
    assert scorer.percentiles.set == "seven faces"
    assert inference.main([scores[3].path, "--weights", str(weights)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "higher than 50 % of seven faces (7 images)"
    assert lines[-1] == f"quality prediction = {scores[3].quality:.4f}"
    assert len(lines) == len(printed) + 1
    table = tmp_path / "scores.jsonl"
    assert inference.main([*faces, "--weights", str(weights), "--output", str(table)]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert sorted(row["percentile"] for row in rows) == pytest.approx([100 * i / 6 for i in range(7)], abs=0.5)

    capsys.readouterr()
    assert evaluate.main(["threshold", "--weights", str(weights), "--discard", "0.5"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("threshold = ")) == pytest.approx(scores[3].quality, abs=1e-6)
    assert second == "discards 50.0% of seven faces (7 images): quality < threshold"


def test_storing_needs_a_score_of_every_image(
    weights: Path, faces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights.read_bytes()
    (tmp_path / "bad.png").write_text("no picture")
    assert script.main([str(weights), *faces, str(tmp_path / "bad.png"), "--set", "x"]) == 2
    assert "1 of 8 images have no score" in capsys.readouterr().err
    assert script.main([str(weights.with_suffix(".pth")), *faces, "--set", "x"]) == 2
    assert weights.read_bytes() == before


@pytest.mark.parametrize("discard", [0.05, 0.29, 0.001])
def test_threshold_discards_at_most_what_is_wanted(discard: float) -> None:
    quality = np.random.default_rng(1).random(100)
    picked = pick_threshold(np.append(quality, np.nan), discard)
    assert picked.images == 100
    assert picked.discarded == np.sum(quality < picked.value) == int(round(100 * discard, 9))
    assert np.sum(quality < np.nextafter(picked.value, 1)) > 100 * discard - 1
    tied = pick_threshold(np.repeat([0.2, 0.4, 0.6], [3, 90, 7]), 0.05)
    assert (tied.value, tied.discarded) == (0.4, 3)


def test_the_interval_is_the_bootstrap_by_brute_force() -> None:
    rng = np.random.default_rng(2)
    quality = rng.random(60)
    picked = pick_threshold(quality, 0.1)
    drawn = [pick_by_hand(rng.choice(quality, 60)) for _ in range(8000)]
    assert picked.value_ci == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=5e-3)
    fresh = [np.mean(rng.random(4000) < pick_by_hand(rng.random(60))) for _ in range(4000)]
    assert picked.share_ci == pytest.approx(np.percentile(fresh, (2.5, 97.5)), abs=0.01)


def pick_by_hand(quality: np.ndarray) -> float:
    return np.sort(quality)[6]


def test_the_printed_threshold_discards_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounded up, it would discard the face whose score it is as well."""
    rows = [row_of(Score(f"{i}.jpg", "ok", 0.5752038 + (i - 2) * 0.0217)) for i in range(14)]
    write_csv(tmp_path / "t.csv", rows)
    assert evaluate.main(["threshold", str(tmp_path / "t.csv"), "--discard", "0.2"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert second.startswith("discards 2 of 14 captures")
    assert sum(row["quality"] < float(first.removeprefix("threshold = ")) for row in rows) == 2


def test_every_face_and_every_frame_is_a_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "captures.csv"
    rows = [f"{i // 4}.jpg,ok,{i / 100},{i % 4}," for i in range(100)]
    table.write_text("path,status,quality,face,frame\n" + "\n".join(rows))
    assert evaluate.main(["threshold", str(table), "--discard", "0.05"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["threshold = 0.05", "discards 5 of 100 captures (5.0%): quality < threshold"]
    assert err == "note: 100 rows of 25 files; each row counts as a capture\n"
    rows = [f"clip.mp4,ok,{i / 100},0,{i}" for i in range(100)]
    table.write_text("path,status,quality,face,frame\n" + "\n".join(rows))
    assert evaluate.main(["threshold", str(table), "--discard", "0.05"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("threshold = 0.05\n")
    assert "100 rows of 1 files; each row counts as a capture; the intervals are too narrow" in err


def test_threshold_of_a_score_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "captures.csv"
    rows = [f"{i}.jpg,ok,{i / 100}" for i in range(100)] + ["x.jpg,no_face,"]
    table.write_text("path,status,quality\n" + "\n".join(rows))
    assert evaluate.main(["threshold", str(table), "--discard", "0.05"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["threshold = 0.05", "discards 5 of 100 captures (5.0%): quality < threshold"]
    assert len(lines) == 4
    assert "1 rows without an ok score" in err
    table.write_text("path,status,quality\nx.jpg,no_face,\n")
    assert evaluate.main(["threshold", str(table), "--discard", "0.05"]) == 2
    assert "none of the captures has a quality" in capsys.readouterr().err
    assert evaluate.main(["threshold", "--discard", "0.05"]) == 2
    assert "one of the two" in capsys.readouterr().err


def test_weights_without_percentiles_say_so(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["threshold", "--weights", str(weights), "--discard", "0.05"]) == 2
    assert "holds no percentiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"set": "a", "images": 3, "quality": [1, 2]}', '{"set": 1, "images": "x", "quality": 0}'],
)
def test_damaged_metadata(text: str) -> None:
    with pytest.raises(ValueError, match="percentiles in the metadata"):
        Percentiles.from_metadata({"percentiles": text})
