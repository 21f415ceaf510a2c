"""Clusters, mated-pair ranks, rank blending: the published numbers, the commands, and every wrong input."""

from __future__ import annotations

import csv
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.inputs import read_any_embeddings, read_qualities
from evaluation.scores import read_scores
from labels.label_table import Label, read_labels, resolve, write_labels
from methods.ediffiqa import prepare
from methods.label_optimization import cluster, optimize, ranks
from methods.label_optimization.kmeans import k_means
from methods.label_optimization.ranks import mean_pair_ranks, optimise, pair_keys, sort_into_clusters
from methods.label_optimization.tables import read_clusters
from model.files import only_run

ROOT = Path(__file__).parents[1]
SINGLETON = [("0.001", "10"), ("0.01", "10"), ("0.1", "1")]
FIRST = [("0.01", "10"), ("0.0137", "10")]
CASES = [("singleton", "cluster_singleton", "random", *case) for case in SINGLETON]
CASES += [("singleton", "cluster_singleton", "first", *case) for case in SINGLETON]
CASES += [("first_member", "cluster_multi", "first", *case) for case in FIRST]


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "label_optimization/label_optimisation.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def clustering_of(published: dict[str, np.ndarray], clusters: str) -> ranks.Clustering:
    names, identities = published["names"].tolist(), list(map(str, published["identity"]))
    return sort_into_clusters(names, identities, list(map(str, published[clusters])))


@pytest.mark.parametrize(("case", "clusters", "partner", "epsilon", "iterations"), CASES)
def test_published_qualities(published, case, clusters, partner, epsilon, iterations):
    quality, rows = published["base_quality"], published["embeddings"]
    clustering = clustering_of(published, clusters)
    found = optimise(quality, rows.__getitem__, clustering, float(epsilon), int(iterations), 5, partner)
    np.testing.assert_array_equal(found.quality, published[f"{case}/eps{epsilon}_it{iterations}"])
    np.testing.assert_array_equal(found.base_rank, published[f"{case}/base_rank"])


@pytest.mark.parametrize(("case", "clusters"), [("singleton", "cluster_singleton"), ("first_member", "cluster_multi")])
def test_published_pair_ranks(published, case, clusters):
    base_rank, rows = published[f"{case}/base_rank"], published["embeddings"]
    clustering = clustering_of(published, clusters)
    keys = pair_keys(rows.__getitem__, clustering, base_rank, [np.random.default_rng()], "first")
    found = mean_pair_ranks(keys[0], len(rows))[base_rank]
    np.testing.assert_array_equal(np.isfinite(found), published[f"{case}/has_pair"])
    np.testing.assert_allclose(np.nan_to_num(found, nan=-1), published[f"{case}/mean_pair_rank"], rtol=1e-14)


def slow(quality, embeddings, names, identities, clusters, epsilon):
    """One iteration with the first member of each other cluster, written as the paper describes it."""
    base = {name: rank for rank, name in enumerate(sorted(names, key=lambda name: quality[names.index(name)]))}
    where = {name: (identity, c) for name, identity, c in zip(names, identities, clusters, strict=True)}
    pairs = []
    for name in names:
        identity, own = where[name]
        for other in {c for i, c in where.values() if i == identity} - {own}:
            partner = min(n for n in names if where[n] == (identity, other))
            a, b = embeddings[names.index(name)], embeddings[names.index(partner)]
            cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            pairs.append((cosine, min(name, partner, key=base.__getitem__)))
    given: dict[str, list[int]] = {}
    for rank, (_, receiver) in enumerate(sorted(pairs)):
        given.setdefault(receiver, []).append(rank)
    moved = {n: base[n] + epsilon * (np.mean(given[n]) - base[n]) if n in given else base[n] for n in names}
    return dict(zip(sorted(names, key=moved.__getitem__), sorted(quality), strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 4), st.integers(1, 5))
def test_equals_the_slow_way_and_keeps_the_histogram(seed, count, identities, clusters):
    rng = np.random.default_rng(seed)
    quality, rows = rng.random(count), rng.normal(size=(count, 6))
    own, groups = rng.integers(identities, size=count), rng.integers(clusters, size=count)
    names = [f"i{i}/{number:02d}.png" for number, i in enumerate(own)]
    labels = list(map(str, own)), list(map(str, groups))
    clustering = sort_into_clusters(names, *labels)
    found = optimise(quality, rows.__getitem__, clustering, 0.05123, 3, 0, "first").quality
    expected = slow(quality, rows, names, *labels, 0.05123)
    np.testing.assert_array_equal(found, [expected[name] for name in names])
    drawn = optimise(quality, rows.__getitem__, clustering, 0.05123, 3, seed).quality
    np.testing.assert_array_equal(np.sort(drawn), np.sort(quality))


def test_iterations_average_over_partners_whatever_is_in_memory_at_a_time(published, monkeypatch):
    quality, rows = published["base_quality"], published["embeddings"]
    clustering = clustering_of(published, "cluster_multi")
    whole = optimise(quality, rows.__getitem__, clustering, 0.01, 7, 3)
    monkeypatch.setattr(ranks, "PAIRS_AT_ONCE", 2 * clustering.pairs)
    monkeypatch.setattr(ranks, "BLOCK_ELEMENTS", 100)
    parts = optimise(quality, rows.__getitem__, clustering, 0.01, 7, 3)
    np.testing.assert_array_equal(whole.quality, parts.quality)
    single = [pair_keys(rows.__getitem__, clustering, whole.base_rank, [np.random.default_rng((3, t))], "random")[0]
              for t in range(7)]  # fmt: skip
    mean = np.mean([ranks.blend(mean_pair_ranks(keys, 200), 0.01) for keys in single], axis=0)
    np.testing.assert_allclose(whole.rank, mean[whole.base_rank], rtol=1e-12)
    other = optimise(quality, rows.__getitem__, clustering, 0.01, 7, 4)
    assert (other.rank != whole.rank).any()
    assert len({keys.tobytes() for keys in single}) == 7  # the partners differ from iteration to iteration


def test_the_order_of_the_images_changes_nothing(published):
    order = np.random.default_rng(0).permutation(200)
    shuffled = published | {key: published[key][order] for key in ("names", "identity", "cluster_multi", "embeddings")}
    straight = optimise(
        published["base_quality"], published["embeddings"].__getitem__, clustering_of(published, "cluster_multi"), 0.01
    )
    mixed = optimise(
        published["base_quality"][order],
        shuffled["embeddings"].__getitem__,
        clustering_of(shuffled, "cluster_multi"),
        0.01,
    )
    np.testing.assert_array_equal(straight.quality[order], mixed.quality)


def test_faces_unlike_their_identity_sink():
    """Of 200 images with meaningless scores a fifth are strangers to their identity."""
    rng = np.random.default_rng(0)
    centres, strange = rng.normal(size=(10, 32)), np.arange(200) % 5 == 0
    rows = np.repeat(centres, 20, axis=0) + rng.normal(size=(200, 32)) * np.where(strange, 3.0, 0.3)[:, None]
    names = [f"i{n // 20}/{n:03d}.png" for n in range(200)]
    clustering = sort_into_clusters(names, [name[:2] for name in names], [str(n % 10) for n in range(200)])
    quality = rng.random(200)
    found = optimise(quality, rows.__getitem__, clustering, 0.1).quality
    assert abs(quality[strange].mean() - quality[~strange].mean()) < 0.1
    assert found[strange].mean() < found[~strange].mean() - 0.2


def test_k_means_finds_separate_groups_and_is_never_empty():
    rng = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)
    truth = np.repeat(np.arange(8), 30)
    rows = centres[truth] + 0.05 * rng.normal(size=(240, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = k_means(rows, 8, np.random.default_rng(1))
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 8
    assert len(np.unique(k_means(rows, 20, np.random.default_rng(1)))) == 20
    np.testing.assert_array_equal(k_means(rows[:5], 20, np.random.default_rng(1)), np.arange(5))
    same = k_means(np.repeat(centres[:2], 20, axis=0), 20, np.random.default_rng(1))
    assert set(same.tolist()) == {0, 1}


# The commands.


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Scores, embeddings and clusters of three identities with 30, 30 and 4 images."""
    rng = np.random.default_rng(0)
    names = [f"id {i}/{n:02d}.png" for i, count in enumerate((30, 30, 4)) for n in range(count)]
    np.savez(tmp_path / "embeddings.npz", names=names, embeddings=rng.normal(size=(64, 16)).astype(np.float32))
    lines = [f"{name},ok,{score:.6f}" for name, score in zip(names, rng.random(64), strict=True)]
    random.Random(0).shuffle(lines)
    (tmp_path / "scores.csv").write_text("\n".join(["path,status,quality", *lines, ""]))
    found = {name: tmp_path / name for name in ("embeddings.npz", "scores.csv", "clusters.tsv", "optimised.tsv")}
    assert run_cluster(found) == 0
    return found


def run_cluster(files: dict[str, Path], *more: str) -> int:
    return cluster.main(
        ["--embeddings", str(files["embeddings.npz"]), "--output", str(files["clusters.tsv"]), "--clusters", "5", *more]
    )


def run_optimise(files: dict[str, Path], *more: str, **changed: Path) -> int:
    given = {"scores": files["scores.csv"], "embeddings": files["embeddings.npz"], "clusters": files["clusters.tsv"]}
    given |= {"output": files["optimised.tsv"], **changed}
    return optimize.main([*(part for name, path in given.items() for part in (f"--{name}", str(path))), *more])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_cluster_table(files, tmp_path):
    rows = rows_of(files["clusters.tsv"])
    assert list(rows[0]) == ["path", "identity", "cluster"]
    assert [row["path"] for row in rows] == sorted(read_scores(files["scores.csv"]))
    assert all(row["path"].startswith(row["identity"] + "/") for row in rows)
    counts = [len({row["cluster"] for row in rows if row["identity"] == f"id {i}"}) for i in range(3)]
    assert counts == [5, 5, 4]
    with np.load(files["embeddings.npz"]) as arrays:  # the last identity alone, and the others in another order
        np.savez(tmp_path / "other.npz", names=arrays["names"][::-1], embeddings=arrays["embeddings"][::-1])
    before = files["clusters.tsv"].read_bytes()
    assert run_cluster(files | {"embeddings.npz": tmp_path / "other.npz"}) == 0
    assert files["clusters.tsv"].read_bytes() == before
    assert run_cluster(files, "--seed", "1") == 0
    assert files["clusters.tsv"].read_bytes() != before


def test_optimised_scores(files, capsys):
    assert run_optimise(files, "--epsilon", "0.02", "--seed", "7") == 0
    assert capsys.readouterr().out == f"{files['optimised.tsv']}\n"
    before, after = read_scores(files["scores.csv"]), read_scores(files["optimised.tsv"])
    assert files["optimised.tsv"].read_text().startswith("path\tquality\n")
    assert list(before) == list(after)
    assert before != after
    assert sorted(before.values()) == sorted(after.values())
    text = files["optimised.tsv"].read_text()
    assert run_optimise(files, "--epsilon", "0.02", "--seed", "7") == 0
    assert files["optimised.tsv"].read_text() == text
    assert run_optimise(files, "--epsilon", "0") == 0
    assert read_scores(files["optimised.tsv"]) == before
    assert not list(files["optimised.tsv"].parent.glob("*.lock"))
    assert not list(files["optimised.tsv"].parent.glob(".*.partial"))


def test_names_match_by_suffix_and_embeddings_may_be_more(files, tmp_path):
    assert run_optimise(files, "--partner", "first") == 0
    expected = list(read_scores(files["optimised.tsv"]).values())
    text = files["scores.csv"].read_text().replace("id ", "/data/faces/id ")
    (tmp_path / "absolute.csv").write_text(text)
    with np.load(files["embeddings.npz"]) as arrays:
        more = np.append(arrays["names"], "id 9/00.png"), np.append(arrays["embeddings"], np.zeros((1, 16)), axis=0)
    np.savez(tmp_path / "more.npz", names=more[0], embeddings=more[1])  # a row that nothing uses may be zero
    changed = {"scores": tmp_path / "absolute.csv", "embeddings": tmp_path / "more.npz"}
    assert run_optimise(files, "--partner", "first", **changed) == 0
    found = read_scores(files["optimised.tsv"])
    assert all(name.startswith("/data/faces/id ") for name in found)
    assert list(found.values()) == expected


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_published_pickles(files, tmp_path, kind):
    assert run_optimise(files, "--partner", "first") == 0
    expected = read_scores(files["optimised.tsv"])
    scores = read_scores(files["scores.csv"])
    names, identities, clusters = read_clusters(files["clusters.tsv"])
    grouped: dict[str, dict[int, list[str]]] = {}
    for name, identity, number in zip(names, identities, clusters, strict=True):
        grouped.setdefault(identity, {}).setdefault(int(number), []).append(name)
    embeddings = read_any_embeddings(files["embeddings.npz"])
    vectors = {name: np.array(row) for name, row in zip(embeddings.names, embeddings.rows, strict=True)}
    content = {"scores": scores if kind == "dict" else list(scores.items()), "embeddings": vectors, "clusters": grouped}
    for name, value in content.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(value))
    assert run_optimise(files, "--partner", "first", **{name: tmp_path / f"{name}.pkl" for name in content}) == 0
    assert read_scores(files["optimised.tsv"]) == expected
    grouped["id 0"][99] = []
    (tmp_path / "clusters.pkl").write_bytes(pickle.dumps(grouped))
    assert run_optimise(files, clusters=tmp_path / "clusters.pkl") == 2


@pytest.fixture
def label_table(files, tmp_path) -> Path:
    """A label table of the same images in a folder of its own, with an image without a quality."""
    (tmp_path / "labels").mkdir()
    scores, path = read_scores(files["scores.csv"]), tmp_path / "labels/labels.tsv"
    labels = [Label(f"../faces/{n}", q, 2, 1, 0, 1, 0, n.split("/")[0], "ok") for n, q in scores.items()]
    labels.insert(3, Label("../faces/id 0/none.png", None, 0, 0, 0, 0, 0, "id 0", "no_face"))
    write_labels(path, labels)
    lines = path.read_text().splitlines()  # a column that we do not know
    path.write_text("\n".join([f"{lines[0]}\tcamera", *(f"{line}\tleft" for line in lines[1:]), ""]))
    return path


def test_label_tables_keep_their_other_columns(files, label_table, tmp_path, capsys):
    assert run_optimise(files, scores=label_table) == 2
    assert "none.png" in capsys.readouterr().err
    output = label_table.with_name("new.tsv")
    assert run_optimise(files, "--skip-unscored", "--epsilon", "0.02", scores=label_table, output=output) == 0
    before, after = rows_of(label_table), rows_of(output)
    assert [row | {"quality": ""} for row in before] == [row | {"quality": ""} for row in after]
    assert before[3] == after[3]
    assert sorted(row["quality"] for row in before) == sorted(row["quality"] for row in after)
    assert before != after
    assert run_optimise(files, "--skip-unscored", "--epsilon", "0.02") == 0
    scores = read_scores(files["optimised.tsv"])
    assert {row["path"].removeprefix("../faces/"): float(row["quality"]) for row in after if row["quality"]} == scores

    elsewhere = tmp_path / "elsewhere" / "deep" / "new.tsv"  # the rows still name the same files
    assert run_optimise(files, "--skip-unscored", "--epsilon", "0.02", scores=label_table, output=elsewhere) == 0
    paths = [Path(resolve(label, elsewhere)).resolve() for label in read_labels(elsewhere)]
    assert paths == [Path(resolve(label, label_table)).resolve() for label in read_labels(label_table)]


def test_published_label_rows_without_a_header(files, tmp_path):
    scores = read_scores(files["scores.csv"])
    path = tmp_path / "published.txt"
    path.write_text("".join(f"{name} [[{quality!r}]] 2 1 0 1 0\n" for name, quality in scores.items()))
    assert read_qualities(path) == scores
    assert run_optimise(files, scores=path) == 0
    labels = read_labels(files["optimised.tsv"])
    assert run_optimise(files, output=tmp_path / "plain.tsv") == 0
    assert {label.path: label.quality for label in labels} == read_scores(tmp_path / "plain.tsv")
    assert {(label.blur, label.pose) for label in labels} == {(2, 1)}


def test_the_result_prepares_ediffiqa(files, label_table, tmp_path):
    for scores in (files["scores.csv"], label_table):
        assert run_optimise(files, "--skip-unscored", scores=scores) == 0
        inputs = ["--scores", str(files["optimised.tsv"]), "--embeddings", str(files["embeddings.npz"])]
        more = ["--output", str(tmp_path / "items"), "--min-images", "3", "--skip-unscored"]
        assert prepare.main([*inputs, *more]) == 0
        items = rows_of(tmp_path / "items/items.tsv")
        optimised = read_qualities(files["optimised.tsv"], skip_unscored=True)
        assert items
        assert all(optimised[item["path"]] == float(item["score"]) for item in items)


def broken_scores(files, tmp_path, change) -> Path:
    path = tmp_path / "broken.csv"
    path.write_text(change(files["scores.csv"].read_text()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "id 9/no.png,ok,0.5\n", "no counterpart"),
        (lambda text: text + "id 1/77.png,ok,nan\n", "have no quality"),
        (lambda text: text + "id 1/77.png,truncated,\n", "have no quality"),
        (lambda text: "".join(line for line in text.splitlines(True) if "id 1" not in line and "id 2" not in line),
         "one identity"),
        (lambda text: "path,status,quality\nid 1/00.png,ok,0.5\n", "1 image of one identity"),
        (lambda text: "path,status,quality\n", "holds no scores"),
        (lambda text: text + "id 1/77.png,ok,good\n", "is not a number"),
    ],
)  # fmt: skip
def test_wrong_scores(files, tmp_path, capsys, change, message):
    files["optimised.tsv"].write_text("of an earlier run")
    assert run_optimise(files, scores=broken_scores(files, tmp_path, change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert files["optimised.tsv"].read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path\tidentity\tcluster\n", "no rows"),
        ("path\tidentity\n", "lacks cluster"),
        ("", "lacks path, identity, cluster"),
        ("path\tidentity\tcluster\nid 0/00.png\tid 0\t\n", "line 2: the cluster is empty"),
        ("path\tidentity\tcluster\nid 0/00.png\t\t1\n", "line 2: the identity is empty"),
        ("path\tidentity\tcluster\nid 0/00.png\tid 0\n", "line 2: 2 cells"),
        ("path\tidentity\tcluster\na/1\ta\t1\na/1\ta\t2\n", "a/1 occurs twice"),
        ("path\tidentity\tcluster\nother/1\ta\t1\n", "no counterpart"),
    ],
)
def test_wrong_clusters(files, tmp_path, capsys, table, message):
    (tmp_path / "wrong.tsv").write_text(table)
    assert run_optimise(files, clusters=tmp_path / "wrong.tsv") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_one_cluster_an_identity_has_no_pairs(files, capsys):
    assert run_cluster(files, "--clusters", "1") == 0
    capsys.readouterr()
    assert run_optimise(files) == 2
    assert "no pairs to compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["a.png", "b.png", "c/1.png"], 1.0, "have no identity, for example a.png"),
        (["a/1.png", "a/2.png", "a/3.png"], 1.0, "3 images of one identity, a"),
        (["a/1.png", "b/1.png", "b/2.png"], 0.0, "the embedding of b/2.png is zero or not finite"),
        (["a/1.png", "b/1.png", "b/2.png"], np.nan, "the embedding of b/2.png is zero or not finite"),
        (["a/1.png", "b/1.png", "b/1.png"], 1.0, "names an image twice"),
    ],
)
def test_wrong_embeddings(files, tmp_path, capsys, names, change, message):
    rows = np.ones((3, 4), np.float32)
    rows[2] *= change
    np.savez(tmp_path / "wrong.npz", names=names, embeddings=rows)
    files["clusters.tsv"].unlink()
    assert run_cluster(files | {"embeddings.npz": tmp_path / "wrong.npz"}) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not files["clusters.tsv"].exists()


def test_missing_files_and_names_that_no_table_holds(files, tmp_path, capsys):
    for name in ("scores", "embeddings", "clusters"):
        assert run_optimise(files, **{name: tmp_path / "none.npz"}) == 2
        assert "does not exist" in capsys.readouterr().err
    np.savez(tmp_path / "tab.npz", names=["a/1\t.png", "b/1.png"], embeddings=np.eye(2))
    assert run_cluster(files | {"embeddings.npz": tmp_path / "tab.npz"}) == 2
    assert "holds a tab or a line end" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--epsilon", "-1"), ("--epsilon", "nan"), ("--iterations", "0"), ("--partner", "x")])
def test_flags_out_of_range(files, flag):
    with pytest.raises(SystemExit) as stopped:
        run_optimise(files, *flag)
    assert stopped.value.code == 2


def test_a_second_run_of_one_output_ends_at_once(files, capsys):
    with only_run(files["optimised.tsv"]):
        assert run_optimise(files) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_ctrl_c_leaves_the_earlier_result(files, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"i{n % 40}/{n:05d}" for n in range(20_000)]
    np.savez(tmp_path / "many.npz", names=names, embeddings=rng.normal(size=(20_000, 128)).astype(np.float32))
    output = tmp_path / "many.tsv"
    output.write_text("of an earlier run")
    command = [sys.executable, "-m", "methods.label_optimization.cluster", "--embeddings", str(tmp_path / "many.npz")]
    child = subprocess.Popen(
        [*command, "--output", str(output), "--clusters", "200"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".many.tsv.*.partial")):
        assert child.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline, "it did not begin to work"
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert "stopped; nothing was written" in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert output.read_text() == "of an earlier run"
    assert not list(tmp_path.glob(".many.tsv.*.partial"))


@pytest.mark.parametrize("module", ["cluster", "optimize"])
def test_help_shows_a_command(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        {"cluster": cluster, "optimize": optimize}[module].main(["--help"])
    assert stopped.value.code == 0
    assert f"python -m methods.label_optimization.{module} --" in capsys.readouterr().out
