"""Reasons to act on: which code follows from which probability or fact, and that every format tells them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import inference
from faces.align import ARCFACE_POINTS
from faces.reader import read_image
from model.calibration import Calibration, Scaling, calibrated
from model.checkpoint import read_checkpoint
from model.prompts import AXES, FACTORS
from model.weights import find_weights
from recipes.default_model.calibrate import fit_scaling, unseen_people
from recipes.default_model.crops import identities, split
from recipes.default_model.reports import calibration
from scoring import Scorer
from scoring.reasons import (
    ADVICE,
    FACTOR_CODES,
    LEAST_FACE,
    Facts,
    Reason,
    fact_reasons,
    factor_reasons,
    facts_of,
    reasons_of,
    share_outside,
)

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
GOOD = {axis: {level: float(level == AXES[axis][-1]) for level in AXES[axis]} for axis in FACTORS}


def codes(facts: Facts) -> dict[str, float]:
    return {reason.code: reason.value for reason in fact_reasons(facts)}


def test_a_factor_is_a_reason_when_its_bad_side_is_the_likelier() -> None:
    assert list(factor_reasons(GOOD)) == []
    assert {factor for factor, _ in FACTOR_CODES.values()} == set(FACTORS)
    assert all(level in AXES[factor] for factor, levels in FACTOR_CODES.values() for level in levels)
    blurred = GOOD | {"blur": {"hazy": 0.2, "blurry": 0.4, "clear": 0.4}}
    (reason,) = factor_reasons(blurred)
    assert (reason.code, reason.value) == ("low_sharpness", pytest.approx(0.6))
    turned = GOOD | {"pose": {"profile": 0.49, "slight angle": 0.51, "frontal": 0.0}}
    assert list(factor_reasons(turned)) == [], "a slight angle is no extreme pose"
    assert list(factor_reasons({"pose": {"profile": 0.51, "slight angle": 0.49, "frontal": 0.0}})) == [
        Reason("extreme_pose", 0.51)
    ]


def test_every_code_has_a_sentence() -> None:
    measured = {"small_face", "low_resolution", "cut_off", "several_faces", "low_quality"}
    assert ADVICE.keys() == FACTOR_CODES.keys() | measured
    assert all(re.fullmatch(r"[A-Z].*\.", Reason(code, 1.0).advice) for code in ADVICE)


def test_a_small_face_is_far_away_or_the_picture_is_small() -> None:
    assert codes(Facts((640, 480), (100, 100, 100 + LEAST_FACE, 200))) == {}
    assert codes(Facts((640, 480), (100, 100, 130, 160))) == {"small_face": 30}
    assert codes(Facts((60, 60), (10, 5, 50, 50))) == {"low_resolution": 40}


def test_several_faces_are_counted() -> None:
    assert codes(Facts((640, 480), (100, 100, 300, 300), faces=3)) == {"several_faces": 3}


def test_a_face_beyond_the_border_is_cut_off() -> None:
    crop = ARCFACE_POINTS.tolist()
    assert share_outside(Facts((112, 112), (20, 20, 90, 100), crop)) < 0.03
    half = (ARCFACE_POINTS - (56, 0)).tolist()  # the border runs through the middle of the face
    assert codes(Facts((112, 112), (-36, 20, 34, 100), half)) == {"cut_off": pytest.approx(0.5, abs=0.02)}
    assert share_outside(Facts((200, 200), (-25, 0, 75, 100))) == pytest.approx(0.25, abs=0.01), "of the box"


def test_a_low_band_always_has_a_reason() -> None:
    assert reasons_of(GOOD, None, 0.2, "low") == (Reason("low_quality", 0.2),)
    assert reasons_of(GOOD, None, 0.2, "medium") == ()
    bad = GOOD | {"occlusion": {"obstructed": 0.9, "unobstructed": 0.1}}
    assert reasons_of(bad, None, 0.2, "low") == (Reason("occluded", 0.9),)
    assert reasons_of(None, None, 0.9, None) is None, "nothing is known"
    assert reasons_of(None, Facts((640, 480), (0, 0, 200, 200)), 0.9, None) == ()


def test_facts_of_a_found_face() -> None:
    face = read_image(SAMPLES / "astronaut.png")
    photograph = cv2.resize(np.pad(face, ((60, 200), (90, 60), (0, 0)), "edge"), None, fx=1.5, fy=1.5)
    scorer = Scorer("clib-fiqa", device="cpu")
    facts = scorer.prepare(photograph, "").facts
    assert facts.size == (photograph.shape[1], photograph.shape[0])
    left, top, right, bottom = facts.box
    x, y = 1.5 * (90 + 56), 1.5 * (60 + 70)  # near the tip of the nose
    assert left < x < right
    assert top < y < bottom
    np.testing.assert_allclose(facts.points[2], (x, y), atol=12)
    assert facts.faces == 1
    assert codes(facts) == {}
    small = scorer.score(cv2.resize(photograph, None, fx=0.35, fy=0.35, interpolation=cv2.INTER_AREA))
    assert "low_resolution" in {reason.code for reason in small.reasons}


def test_facts_of_plain_values() -> None:
    points = [float(i) for i in range(10)]
    assert facts_of((640, 480), (1.0, 2.0, 3.0, 4.0), points, 2) == Facts(
        (640, 480), (1.0, 2.0, 3.0, 4.0), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]], 2
    )
    assert facts_of((640, 480), (1.0, 2.0, 3.0, 4.0), None, None) == Facts((640, 480), (1.0, 2.0, 3.0, 4.0))
    assert facts_of((112, 112), None, None, None) is None, "a crop that was taken as it is"


def test_calibration_sharpens_and_keeps_other_axes() -> None:
    probabilities = torch.tensor([[0.4, 0.6], [0.5, 0.5], [0.0, 1.0]])
    sharp = calibrated(probabilities, Scaling((0.5, 3.0), 10))
    assert sharp.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert sharp[0, 1].item() == pytest.approx(0.6**3 / (0.6**3 + 0.4**3))
    assert sharp[1].tolist() == [0.5, 0.5]
    assert calibrated(torch.tensor([[0.8, 0.2]]), Scaling((0.5, 3.0), 10))[0, 0].item() == pytest.approx(2 / 3)
    assert torch.isfinite(sharp).all()
    random = torch.from_numpy(np.random.default_rng(0).dirichlet((1, 1, 1), 1000))
    scaled = calibrated(random, Scaling((0.2, 1.0, 5.0), 10))
    assert torch.equal(scaled.argmax(dim=1), random.argmax(dim=1)), "no other name"
    table = Calibration("a set", {"occlusion": Scaling((0.5, 3.0), 10)})
    axes = {"occlusion": probabilities, "quality": torch.ones(3, 5) / 5}
    done = table.apply(axes)
    assert done["quality"] is axes["quality"]
    assert torch.equal(done["occlusion"], sharp)
    assert Calibration.from_metadata({"calibration": table.to_json()}) == table
    assert Calibration.from_metadata({}) is None


def test_weights_move_the_border_between_two_levels() -> None:
    """Where the first level is wanted from 0.4 on, a probability of 0.4 becomes 0.5, whatever the scales."""
    probabilities = torch.tensor([[0.3, 0.7], [0.4, 0.6], [0.41, 0.59], [0.9, 0.1]])
    levels = np.array([1, 0, 0, 0])
    scaling = fit_scaling(probabilities.numpy(), levels, border=0.4)
    assert scaling.weights == (1.5, 1.0)
    done = calibrated(probabilities, scaling)
    assert done[1].tolist() == pytest.approx([0.5, 0.5])
    assert done.argmax(dim=1).tolist() == [1, done[1].argmax().item(), 0, 0]
    assert calibrated(probabilities, Scaling((1.0, 1.0), 4, (1.5, 1.0)))[0, 0].item() == pytest.approx(0.45 / 1.15)
    table = Calibration("a set", {"expression": scaling})
    assert Calibration.from_metadata({"calibration": table.to_json()}) == table


WRONG_WEIGHTS = '{"set": "x", "factors": {"occlusion": {"scales": [1, 1], "images": 1, "weights": [1, 0]}}}'
WRONG_LEVELS = '{"set": "x", "factors": {"blur": {"scales": [1, 1], "images": 1}}}'


@pytest.mark.parametrize("text", ["no JSON", "{}", WRONG_LEVELS, WRONG_WEIGHTS])
def test_a_damaged_calibration_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="calibration in the metadata of the weights is damaged"):
        Calibration.from_metadata({"calibration": text})


def test_the_scales_of_overcautious_probabilities_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet((0.5, 0.5, 0.5), 4000)
    levels = (rng.random(4000)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    cautious = true**0.4 / (true**0.4).sum(axis=1, keepdims=True)
    fitted = fit_scaling(cautious, levels)
    assert fitted.scales == pytest.approx((2.5, 2.5, 2.5), rel=0.15)
    assert fitted.images == 4000
    alone = fit_scaling(np.array([[0.4, 0.6]] * 50), np.ones(50, int))
    assert alone.scales[0] == 1.0, "never the most probable one"
    assert 1 < alone.scales[1] < 20, "finite, though every face was seen right"


def test_the_people_of_the_calibration_are_nobody_else(shared: Path) -> None:
    images = Counter(path.parent.name for path in unseen_people(shared / "data"))
    assert not images.keys() & set(split(shared / "data", "test"))
    assert not images.keys() & set(identities(shared / "data"))
    assert len(images) > 100
    assert max(images.values()) < 3


def test_calibration_changes_no_quality() -> None:
    faces = [str(path) for path in sorted(SAMPLES.glob("*.png"))]
    ours = Scorer("clib-fiqa", device="cpu").score(faces)
    raw = Scorer("clib-fiqa", device="cpu", calibrated=False).score(faces)
    assert [score.quality for score in ours] == [score.quality for score in raw]
    assert ours[0].factors != raw[0].factors
    told = {reason.code for score in raw for reason in score.reasons or ()}
    assert told <= {"low_quality"}, "no reasons from probabilities that are not calibrated"


def test_the_shipped_weights_are_calibrated_and_tell_the_reasons() -> None:
    table = Calibration.from_metadata(read_checkpoint(find_weights("clib-fiqa"))[1])
    assert table is not None, "run `make calibrate`"
    assert table.factors.keys() == set(FACTORS)
    assert all(scaling.images >= 200 for scaling in table.factors.values())
    faces = sorted(map(str, SAMPLES.glob("*.png")))
    scores = {Path(score.path).stem: score for score in Scorer(device="cpu").score(faces)}
    told = {name: {reason.code for reason in score.reasons} for name, score in scores.items()}
    assert told["astronaut_occluded"] >= {"occluded"}
    assert told["astronaut_blurred"] >= {"low_sharpness"}
    assert told["hopper_tiny"] >= {"low_sharpness"}
    assert told["hopper_dark"] >= {"bad_lighting"}
    assert told["cameraman_turned"] >= {"extreme_pose"}
    assert not told["astronaut"] & {"low_sharpness", "occluded", "bad_lighting", "extreme_pose"}
    assert "Take away what covers your face" in scores["astronaut_occluded"].advice


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_format_tells_band_reasons_and_advice(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / f"scores.{suffix}"
    faces = [str(SAMPLES / name) for name in ("astronaut_occluded.png", "README.md")]
    assert inference.main([*faces, "--output", str(output), "--workers", "0"]) == 1
    if suffix == "csv":
        with open(output, newline="") as file:
            row, failed = csv.DictReader(file)
        assert list(row)[8:12] == ["percentile", "band", "reasons", "advice"]
        assert re.search(r"(^|;)occluded=(0\.\d+|1\.0)", row["reasons"])
        assert ADVICE["occluded"] in row["advice"]
        assert not any(failed[column] for column in list(row)[2:])
    else:
        lines = output.read_text().splitlines() if suffix == "jsonl" else []
        row, failed = parquet.read_table(output).to_pylist() if suffix == "parquet" else map(json.loads, lines)
        reason = next(reason for reason in row["reasons"] if reason["code"] == "occluded")
        assert reason["advice"] == ADVICE["occluded"]
        assert 0.5 < reason["value"] <= 1
        assert failed["reasons"] is failed["band"] is None
    assert row["band"] == "low"


def test_one_image_prints_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main([str(SAMPLES / "astronaut_occluded.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("quality prediction = ")
    assert "band: low" in lines
    assert any(re.fullmatch(rf"occluded 0?\.?\d+: {re.escape(ADVICE['occluded'])}", line) for line in lines)


def test_the_calibration_is_measured_on_other_people(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    crop = read_image(SAMPLES / "astronaut.png")
    best = {factor: len(AXES[factor]) - 1 for factor in FACTORS}
    monkeypatch.setattr(calibration, "known_levels", lambda *_: iter([(crop, best), (crop, {"blur": best["blur"]})]))
    monkeypatch.setattr(calibration, "lfw_test_paths", lambda data: [])
    rows = list(calibration.calibration_rows("clib-fiqa", Path(), Path(), 1))
    assert [row[:2] for row in rows] == [[factor, 2 if factor == "blur" else 1] for factor in FACTORS]
    assert all(0 <= after <= before < 0.5 for _, _, before, after in rows), "a face in which nothing is wrong"
    with pytest.raises(ValueError, match="holds no calibration"):
        list(calibration.calibration_rows(str(weights), Path(), Path(), 1))
