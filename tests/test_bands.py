"""Bands: where they begin is measured, written to a file, and read only with the weights it belongs to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import evaluate
import inference
from evaluation.bands import lowest_quality, measure_bands
from evaluation.bench import Bootstrap
from evaluation.edc import discard_order
from evaluation.pairs import Pairs
from model.bands import BANDS, Bands
from model.checkpoint import sha256_of
from model.weights import find_weights
from recipes.default_model import bands as recipe
from scoring import Scorer
from scoring.bands import bands_file, bands_of

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"


def pairs_with_errors(people: int = 300, seed: int = 0) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """Two images a person; a mated pair fails with the probability 0.5 below a quality of 0.3, 0.04 from there on, and
    0.005 from 0.7 on. Non-mated pairs lie below all mated ones that succeed."""
    rng = np.random.default_rng(seed)
    names = [f"{person}/{image}.png" for person in range(people) for image in "ab"]
    quality = rng.random(len(names))
    first = np.arange(0, len(names), 2)
    worse = np.minimum(quality[first], quality[first + 1])
    fails = rng.random(people) < np.select([worse < 0.3, worse < 0.7], [0.5, 0.04], 0.005)
    other = (first + 2) % len(names)
    similarity = np.concatenate([np.where(fails, 0.1, 0.9), rng.uniform(0.2, 0.4, people)])
    index = np.concatenate([first, first]).astype(np.int32)
    pairs = Pairs(names, index, np.concatenate([first + 1, other]).astype(np.int32), np.arange(2 * people) < people)
    return pairs, quality, similarity


def test_bands_begin_where_the_errors_become_rare() -> None:
    pairs, quality, similarity = pairs_with_errors(4000)
    low, medium, high = measure_bands(pairs, quality, {"fr": similarity}, 1e-3, (0.06, 0.01), Bootstrap(200))
    assert [low.band, medium.band, high.band] == list(BANDS)
    assert low.lowest is None
    assert medium.lowest == pytest.approx(0.25, abs=0.05)
    assert high.lowest == pytest.approx(0.66, abs=0.08)
    worse = np.minimum(quality[pairs.first], quality[pairs.second])[pairs.mated]
    fails = similarity[pairs.mated] < 0.2
    for one, wanted in ((medium, 0.06), (high, 0.01)):
        kept = worse >= one.lowest
        assert fails[kept].mean() <= wanted
        assert fails[worse >= np.nextafter(one.lowest, 0) - 0.02].mean() > wanted - 0.01
        assert one.fnmr_from == pytest.approx(fails[kept].mean())
        assert one.lowest_ci[0] <= one.lowest <= one.lowest_ci[1]
        assert one.fnmr_ci[0] <= one.fnmr <= one.fnmr_ci[1]
    assert low.pairs + medium.pairs + high.pairs == 4000
    assert low.share + medium.share + high.share == pytest.approx(1)
    inside = (worse >= medium.lowest) & (worse < high.lowest)
    assert medium.fnmr == pytest.approx(fails[inside].mean())


def test_the_errors_are_means_over_the_recognition_models() -> None:
    pairs, quality, similarity = pairs_with_errors(2000)
    never = np.where(pairs.mated, 0.9, 0.3)
    (low, *_), (half, *_) = (
        measure_bands(pairs, quality, models, 1e-3, (0.1, 0.05), Bootstrap(0))
        for models in ({"fr": similarity}, {"fr": similarity, "perfect": never})
    )
    assert half.fnmr_from == pytest.approx(low.fnmr_from / 2)
    assert low.fnmr_ci is None


def test_a_rate_needs_pairs_enough_to_show_it() -> None:
    worse, errors = np.linspace(0, 1, 100), np.zeros(100)
    errors[:10] = 1
    order = discard_order(worse)
    assert lowest_quality(order, worse, errors, 0.05) == worse[6]  # 4 of 94 fail
    assert lowest_quality(order, worse, errors, 0.02) is None, "3 / 0.02 pairs were not there"
    pairs, quality, similarity = pairs_with_errors(300)
    with pytest.raises(ValueError, match=r"0\.001 can be shown with 3,000 mated pairs or more; the list has 300"):
        measure_bands(pairs, quality, {"fr": similarity}, 1e-2, (0.2, 0.001), Bootstrap(0))
    with pytest.raises(ValueError, match="the lowest is"):
        measure_bands(pairs, quality, {"fr": np.where(pairs.mated, 0.1, 0.3)}, 1e-2, (0.2, 0.1), Bootstrap(0))
    with pytest.raises(ValueError, match=r"FMR 0\.001 needs 1,000 non-mated pairs, the list has 300"):
        measure_bands(pairs, quality, {"fr": similarity}, 1e-3, (0.2, 0.1), Bootstrap(0))
    with pytest.raises(ValueError, match="two rates"):
        measure_bands(pairs, quality, {"fr": similarity}, 1e-2, (0.02, 0.05), Bootstrap(0))


@pytest.fixture
def measured(tmp_path: Path) -> list[str]:
    """The files of `evaluate.py bands`."""
    pairs, quality, similarity = pairs_with_errors(1200)
    names = np.array(pairs.names)
    rows = zip(names[pairs.first], names[pairs.second], pairs.mated.astype(int), strict=True)
    (tmp_path / "pairs.tsv").write_text("path_a\tpath_b\tsame\n" + "".join(f"{a}\t{b}\t{s}\n" for a, b, s in rows))
    scores = "".join(f"{name},ok,{value}\n" for name, value in zip(names, quality, strict=True))
    (tmp_path / "scores.csv").write_text("path,status,quality\n" + scores)
    angle = np.arange(1200) * 0.1  # a direction for each person in the first plane, and fails in the second
    rows_ = np.zeros((2400, 4))
    rows_[0::2, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    fails = similarity[:1200] < 0.2
    rows_[1::2] = rows_[0::2]
    rows_[1::2][fails] = (0, 0, 1, 0)
    np.savez(tmp_path / "fr.npz", names=names, embeddings=rows_)
    files = [f"--{name}={tmp_path / file}" for name, file in (("pairs", "pairs.tsv"), ("scores", "scores.csv"))]
    output = ["--output", str(tmp_path / "bands.json"), "--fmr", "0.01"]
    return ["bands", *files, "--embeddings", f"fr={tmp_path}/fr.npz", *output]


def test_evaluate_writes_a_table_with_its_source(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--weights", "clib-fiqa", "--set", "our gates"]
    assert evaluate.main([*measured, "--fnmr", "0.1", "0.04", "--bootstrap", "50", *names]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "our gates; FNMR at FMR 0.01, mean over fr"
    table = Bands.read(tmp_path / "bands.json")
    assert table.set == "our gates"
    assert table.weights == sha256_of(find_weights("clib-fiqa"))
    assert [one.wanted for one in table.measured] == [None, 0.1, 0.04]
    assert {Path(name).name for name in table.source["inputs"]} == {"pairs.tsv", "scores.csv", "fr.npz"}
    assert table.source["pairs"] == {"images": 2400, "mated": 1200, "non_mated": 1200}
    printed = [float(re.search(r"from (\S+) ", line)[1]) for line in out.splitlines()[2:4]]
    assert printed == [table.lowest("medium"), table.lowest("high")], "rounded up, it would refuse pairs of its band"
    high = table.lowest("high")
    assert table.band(high) == "high"
    assert table.band(np.nextafter(high, 0)) == "medium"
    assert table.band(table.lowest("medium") - 1e-9) == "low"

    assert evaluate.main([*measured, "--fnmr", "0.0001", "0.00001"]) == 2
    assert "mated pairs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bands", "edc"])
def test_of_several_faces_of_an_image_the_largest_counts(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A table of inference.py --faces all. In lines nothing tells the faces apart, and the run says which counts."""
    file, output = tmp_path / "scores.csv", tmp_path / "bands.json"
    rest = ["--fnmr", "0.1", "0.04", "--bootstrap", "0"]
    if command == "edc":
        measured = ["edc", *(one.replace("--scores=", "--scores=mine=") for one in measured[1:])]
        output, rest = tmp_path / "bands.json/results.json", ["--bootstrap", "0"]
    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    several = [f"{name},ok,{value},0\n{name},ok,-9,1\n" for name, _, value in rows]
    tables = {
        "": file.read_text(),
        "; its first face, the largest, counts": "path,status,quality,face\n" + "".join(several),
        "; the last row counts": "".join(f"{name} -9\n{name} {value}\n" for name, _, value in rows),
    }
    found = []
    for note, table in tables.items():
        file.write_text(table)
        assert evaluate.main([*measured, *rest]) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if "repeat an image" in line]
        assert notes == ([f"note: 2400 of 4800 rows of {file} repeat an image{note}"] if note else [])
        found.append(json.loads(output.read_text())["measured" if command == "bands" else "results"])
    assert found[0] == found[1] == found[2]


def test_the_scores_may_be_a_column(measured: list[str], tmp_path: Path) -> None:
    """OFIQ's tables have several; the table of bands names the file and its hash."""
    named = [f"{flag}:quality" if flag.startswith("--scores") else flag for flag in measured]
    assert evaluate.main([*named, "--fnmr", "0.1", "0.04", "--bootstrap", "0"]) == 0
    inputs = Bands.read(tmp_path / "bands.json").source["inputs"]
    assert inputs[str(tmp_path / "scores.csv")] == sha256_of(tmp_path / "scores.csv")


def test_a_table_is_refused_for_other_weights(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bands.json"
    assert evaluate.main([*measured, "--fnmr", "0.1", "0.04", "--bootstrap", "0", "--weights", "clib-fiqa"]) == 0
    tiny = Scorer("clib-fiqa", device="cpu", bands=file)
    limits = [tiny.bands.lowest("medium"), tiny.bands.lowest("high")]
    score = tiny.score(SAMPLES / "astronaut.png")
    assert score.band == BANDS[int(np.searchsorted(limits, score.quality, side="right"))]
    assert "band=" in repr(score)
    capsys.readouterr()
    face = str(SAMPLES / "astronaut.png")
    assert inference.main([face, "--bands", str(file), "--weights", "ediffiqa"]) == 2
    assert "was measured with the weights" in capsys.readouterr().err
    assert inference.main([face, "--bands", str(tmp_path / "nowhere.json")]) == 2
    (tmp_path / "broken.json").write_text('{"measured": []}')
    assert inference.main([face, "--bands", str(tmp_path / "broken.json")]) == 2
    assert "is no table of bands" in capsys.readouterr().err
    nameless = json.loads(file.read_text()) | {"weights": None}
    file.write_text(json.dumps(nameless))
    assert bands_of(find_weights("clib-fiqa"), file) is not None, "nobody said which weights"


def test_old_limits_mean_nothing_for_new_weights(tmp_path: Path) -> None:
    shipped = find_weights("clib-fiqa")
    copy = tmp_path / shipped.name
    copy.write_bytes(shipped.read_bytes())
    bands_file(copy).write_bytes(bands_file(shipped).read_bytes())
    assert bands_of(copy) == bands_of(shipped)
    copy.write_bytes(shipped.read_bytes() + b"other weights")
    assert bands_of(copy) is None


@pytest.mark.parametrize("name", recipe.WEIGHTS)
def test_the_shipped_table_was_measured_with_the_shipped_weights(name: str) -> None:
    """New weights need new bands: this fails until `make bands` has run again."""
    weights = find_weights(name)
    table = Bands.read(bands_file(weights))
    assert table.weights == sha256_of(weights)
    assert bands_of(weights) == table
    assert [one.wanted for one in table.measured] == [None, *recipe.FNMR]
    assert table.fmr == recipe.FMR
    assert table.fr.keys() == set(recipe.MODELS)
    assert all(fragment in table.set for fragment in ("LFW", "CelebA"))
    assert table.source["inputs"]
    for one in table.measured[1:]:
        assert one.fnmr_from <= one.wanted
        assert one.lowest_ci[0] <= one.lowest <= one.lowest_ci[1]


def test_sets_are_joined_under_common_thresholds() -> None:
    sets = []
    for seed in (0, 1):
        pairs, _, similarity = pairs_with_errors(20, seed)
        sets.append(recipe.Measured(pairs, dict.fromkeys(recipe.MODELS, similarity)))
    whole = recipe.joined(sets)
    assert len(whole.pairs.names) == 80
    assert whole.pairs.names[whole.pairs.first[40]] == sets[1].pairs.names[sets[1].pairs.first[0]]
    assert whole.pairs.second[40:].min() >= 40
    assert whole.similarity["dlib"].shape == whole.pairs.mated.shape == (80,)
