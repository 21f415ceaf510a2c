"""Paired differences between methods: against brute force, pooled over sets, and as the command lines give them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import evaluate
from evaluation.bench import Bootstrap, Outcome, iso
from evaluation.bootstrap import interval
from evaluation.compare import Difference, EdcRun, comparison_tables, differences, pool, pooled
from evaluation.pairs import Pairs, identities
from evaluation.tables import as_markdown, uses_model

PEOPLE, IMAGES, REPLICATES = 30, 4, 60


def synthetic(seed: int, people: int = PEOPLE) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """A set, its similarities (P,) and the usefulness (N,) of its images, which makes similarities."""
    rng = np.random.default_rng(seed)
    names = [f"{person:03d}/{image}.jpg" for person in range(people) for image in range(IMAGES)]
    owner = np.repeat(np.arange(people), IMAGES)
    first, second = np.triu_indices(len(names), 1)
    chosen = (owner[first] == owner[second]) | (rng.random(len(first)) < 0.05)
    first, second = first[chosen], second[chosen]
    mated = owner[first] == owner[second]
    useful = rng.random(len(names))
    similarity = mated * np.minimum(useful[first], useful[second]) + rng.normal(0, 0.1, len(first))
    return Pairs(names, first.astype(np.int32), second.astype(np.int32), mated), similarity, useful


def outcome(seed: int, fmrs: tuple[float, ...] = (0.01,), people: int = PEOPLE) -> Outcome:
    pairs, similarity, useful = synthetic(seed, people)
    rng = np.random.default_rng(seed + 100)
    qualities = {
        "good": useful + rng.normal(0, 0.1, len(useful)),
        "twin": useful + rng.normal(0, 0.1, len(useful)),
        "random": rng.random(len(useful)),
    }
    return iso(pairs, qualities, {"fr": similarity}, fmrs, [0.2, 0.3], Bootstrap(REPLICATES, 7))


def run_of(name: str, found: Outcome) -> EdcRun:
    return EdcRun(name, found.results, np.array(found.replicates))


def relative_area_by_hand(quality: np.ndarray, wrong: np.ndarray, limit: float, steps: int = 60_000) -> float:
    """The mean of the step function at very many discard fractions."""
    fractions = (np.arange(steps) + 0.5) / steps * limit
    levels = np.unique(quality)
    starts = np.array([np.mean(quality < level) for level in levels])
    fnmr = np.array([wrong[quality >= level].mean() for level in levels])
    return float(fnmr[np.searchsorted(starts, fractions, side="right") - 1].mean() / wrong.mean())


def test_differences_are_brute_force() -> None:
    """Every replicate: draw people, list their pairs as often as they were drawn, both areas, subtract."""
    pairs, similarity, useful = synthetic(1)
    rng = np.random.default_rng(2)
    qualities = {"a": useful + rng.normal(0, 0.2, len(useful)), "b": rng.integers(0, 5, len(useful)).astype(float)}
    found = iso(pairs, qualities, {"fr": similarity}, [0.01], [0.3], Bootstrap(12, 3))
    difference = differences([run_of("set", found)], "a", 0.3)[0]

    mated = pairs.mated
    first, second = pairs.first[mated], pairs.second[mated]
    wrong = similarity[mated] < found.results[0]["threshold"]
    person = identities(pairs)[first]
    draws = np.random.default_rng((3, *np.bincount(person).tolist()))
    for value in difference.replicates:
        drawn = draws.integers(0, PEOPLE, PEOPLE)
        listed = np.concatenate([np.flatnonzero(person == one) for one in drawn])
        areas = [
            relative_area_by_hand(np.minimum(q[first], q[second])[listed], wrong[listed], 0.3)
            for q in qualities.values()
        ]
        assert value == pytest.approx(areas[0] - areas[1], abs=2e-3)


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    found = outcome(3)
    rows = {r["method"]: values for r, values in zip(found.results, found.replicates, strict=True) if r["limit"] == 0.3}
    paired = differences([run_of("set", found)], "good", 0.3)[0].replicates
    assert paired.std() < 0.8 * np.hypot(rows["good"].std(), rows["twin"].std())
    same = EdcRun("set", found.results, np.array([rows["good"]] * len(found.results)))
    assert interval(differences([same], "good", 0.3)[0].replicates) == [0.0, 0.0]


def test_sets_of_other_people_are_drawn_on_their_own() -> None:
    """A damaged copy of a set sees the same people; the pooled replicates are the mean over the cells."""
    clean, copy, other = outcome(4), outcome(4), outcome(5, people=PEOPLE + 1)
    np.testing.assert_array_equal(clean.replicates, copy.replicates)
    cells = differences([run_of("clean", clean), run_of("other", other)], "good", 0.3)
    against_random = [cell for cell in cells if cell.other == "random"]
    assert [cell.set for cell in against_random] == ["clean", "other"]
    one, two = (cell.replicates for cell in against_random)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.5
    row = pool(against_random)
    assert row["difference_ci"] == pytest.approx(np.percentile((one + two) / 2, (2.5, 97.5)))
    assert row["difference"] == pytest.approx(np.mean([c.pauc_relative - c.other_pauc_relative for c in cells[1::2]]))
    assert row["difference_ci"][1] < 0
    assert (row["cells"], row["lower"], row["wholly_below"], row["wholly_above"]) == (2, 2, 2, 0)


def cell(errors: int, same_model: bool, value: float, replicates: list[float]) -> Difference:
    return Difference("x", "set", f"fr{errors}", 0.01, errors, same_model, 0.5 + value, 0.5, np.array(replicates))


def test_few_errors_and_the_same_model_are_kept_apart() -> None:
    found = [cell(100, False, -0.1, [-0.2, -0.1]), cell(99, False, 0.3, [0.2, 0.4]), cell(500, True, -0.2, [-0.3, 0.1])]
    enough, harm, everything, same = pooled(found).values()
    assert [rows[0]["difference"] for rows in (enough, harm, everything, same)] == pytest.approx([-0.1, 0.3, 0.1, -0.2])
    assert [rows[0]["wholly_above"] for rows in (enough, harm, everything, same)] == [0, 1, 1, 0]
    tables = [as_markdown(table) for table in comparison_tables(found, "m", 0.3)]
    assert len(tables) == 4 + 3, "each cell is shown once"
    assert [f"fr{n} @" in table for table in tables for n in (100, 99, 500)].count(True) == 3
    assert pooled(found[:1]).keys() == {"cells of at least 100 errors", "all these cells"}


def test_a_replicate_without_errors_leaves_its_cell_out() -> None:
    cells = [cell(5, False, -0.1, [np.nan, -0.2, np.nan]), cell(6, False, -0.1, [-0.4, -0.4, np.nan])]
    assert pool(cells)["difference_ci"] == pytest.approx(np.percentile([-0.4, -0.3], (2.5, 97.5)))


def test_a_method_may_use_several_models() -> None:
    assert uses_model("norm@dlib", "dlib")
    assert uses_model("ours@foamliu@dlib", "foamliu")
    assert not uses_model("dlib", "dlib")
    assert not uses_model("norm@dlib2", "dlib")


@pytest.fixture(scope="module")
def bench(golden: Path) -> list[str]:
    """The golden benchmark; RANDOM stands for a method that the judge made."""
    folder = golden / "evaluation"
    names = {"GOOD": "GOOD", "TIED": "TIED", "RANDOM@ArcFace": "RANDOM"}
    scores = [f"{name}={folder}/quality_data/SYN/{file}_SYN.txt" for name, file in names.items()]
    pairs = str(folder / "quality_data/SYN/pair_list.txt")
    embeddings = f"ArcFace={folder / 'embeddings.npz'}"
    return ["edc", "--pairs", pairs, "--scores", *scores, "--embeddings", embeddings, "--bootstrap", "40"]


@pytest.fixture(scope="module")
def folders(bench: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("runs")
    for name, more in (("one", ["--against", "GOOD"]), ("two", ["--fmr", "1e-2"])):
        assert evaluate.main([*bench, "--output", str(root / name), *more]) == 0
    return [str(root / "one"), str(root / "two")]


def test_one_set_and_several(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(Path(folders[0], "differences.json").read_text())
    assert (one["method"], one["limit"]) == ("GOOD", 0.3)
    assert [(c["other"], c["fmr"], c["same_model"]) for c in one["cells"]] == [
        ("TIED", 0.01, False), ("TIED", 0.001, False), ("RANDOM@ArcFace", 0.01, True), ("RANDOM@ArcFace", 0.001, True),
    ]  # fmt: skip
    results = json.loads(Path(folders[0], "results.json").read_text())["results"]
    value = {(r["method"], r["fmr"]): r["pauc_relative"] for r in results if r["limit"] == 0.3}
    first = one["cells"][0]
    assert first["difference"] == pytest.approx(value["GOOD", 0.01] - value["TIED", 0.01], abs=1e-12)
    assert first["difference_ci"][0] < first["difference"] < first["difference_ci"][1]
    assert np.load(Path(folders[0], "replicates.npy")).shape == (len(results), 40)

    assert evaluate.main(["compare", *folders, "--against", "GOOD", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "two: ArcFace @ 0.01" in printed
    several = json.loads((tmp_path / "differences.json").read_text())
    for now, then in zip(several["cells"], one["cells"], strict=False):
        assert now.pop("difference_ci") == pytest.approx(then.pop("difference_ci"), abs=1e-6)  # stored in float32
        assert now == then
    assert [rows[0]["cells"] for rows in several["pooled"].values()] == [3, 3, 3]
    assert "| one: ArcFace @ 0.01 |" in (tmp_path / "differences.md").read_text()


def test_errors_say_what_is_missing(
    bench: list[str], folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*flags: str) -> str:
        assert evaluate.main(list(flags)) == 2
        return capsys.readouterr().err

    output = ["--output", str(tmp_path / "three"), "--fmr", "0.01"]
    assert "one of --scores (GOOD, TIED, RANDOM@ArcFace)" in error(*bench, *output, "--against", "BAD")
    assert "protocol iso" in error(*bench, *output, "--against", "GOOD", "--protocol", "cr-fiqa")
    assert "no method 'BAD'" in error("compare", *folders, "--against", "BAD")
    assert "limits 0.2, 0.3, 0.4" in error("compare", *folders, "--against", "GOOD", "--limit", "0.35")
    assert evaluate.main([*bench, *output, "--bootstrap", "30"]) == 0
    assert "'three': 30" in error("compare", folders[0], str(tmp_path / "three"), "--against", "GOOD")
    assert evaluate.main([*bench, *output, "--bootstrap", "0"]) == 0
    assert "--bootstrap above 0" in error("compare", str(tmp_path / "three"), "--against", "GOOD")
