"""eDifFIQA's preparation: the published numbers for both beta, and every wrong input."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from evaluation.scores import read_scores
from methods.ediffiqa.prepare import main, select
from model.files import only_run


@pytest.fixture
def inputs(golden: Path, tmp_path: Path) -> dict[str, Path]:
    """The published scores, embeddings as `evaluate.py embed` writes them, and the output."""
    with np.load(golden / "ediffiqa/ediffiqa_prepare.npz") as arrays:
        np.savez(tmp_path / "embeddings.npz", names=arrays["embedding_paths"], embeddings=arrays["embeddings"])
    return {
        "scores": golden / "ediffiqa/ediffiqa_prepare_scores.tsv",
        "embeddings": tmp_path / "embeddings.npz",
        "output": tmp_path / "out",
    }


def run(inputs: dict[str, Path], *more: str) -> int:
    return main([*(part for name, path in inputs.items() for part in (f"--{name}", str(path))), *more])


def check_published(golden: Path, output: Path, beta: str) -> None:
    expected = (golden / f"ediffiqa/ediffiqa_prepare_items_beta{beta}.tsv").read_text()
    assert (output / "items.tsv").read_text() == "path\tscore\tclass\n" + expected
    with np.load(golden / "ediffiqa/ediffiqa_prepare.npz") as numbers, np.load(output / "centres.npz") as found:
        assert found["identities"].tolist() == numbers[f"beta{beta}/identities"].tolist()
        assert found["centres"].dtype == np.float32
        np.testing.assert_allclose(found["centres"], numbers[f"beta{beta}/average_embeddings"], atol=1e-6)


@pytest.mark.parametrize("beta", ["0.2", "0.5"])
def test_published_numbers(golden, inputs, beta, capsys):
    assert run(inputs, "--beta", beta) == 0
    assert capsys.readouterr().out == f"{inputs['output']}\n"
    check_published(golden, inputs["output"], beta)
    assert sorted(path.name for path in inputs["output"].iterdir()) == ["centres.npz", "items.tsv"]


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_published_threshold_and_counts(golden, beta):
    scores = read_scores(golden / "ediffiqa/ediffiqa_prepare_scores.tsv")
    found = select(np.array(list(scores.values())), [name.rsplit("/", 1)[0] for name in scores], beta, 10)
    with np.load(golden / "ediffiqa/ediffiqa_prepare.npz") as numbers:
        assert found.threshold == numbers[f"beta{beta}/threshold"]
        counts = dict(zip(numbers["all_identities"].tolist(), numbers[f"beta{beta}/high_quality_count"], strict=True))
    assert found.counts == counts


@pytest.mark.parametrize("kind", [dict, list])
def test_published_pickles(golden, inputs, tmp_path, kind):
    scores = read_scores(inputs["scores"])
    with np.load(inputs["embeddings"]) as arrays:
        vectors = dict(zip(arrays["names"].tolist(), arrays["embeddings"], strict=True))
    paths = {"scores": tmp_path / "scores.pkl", "embeddings": tmp_path / "embeddings.pkl"}
    paths["scores"].write_bytes(pickle.dumps(kind(scores.items())))
    paths["embeddings"].write_bytes(pickle.dumps(vectors))
    assert run(inputs | paths) == 0
    check_published(golden, inputs["output"], "0.2")


def test_fewest_images_of_an_identity(inputs):
    assert run(inputs, "--min-images", "1") == 0
    with np.load(inputs["output"] / "centres.npz") as found:
        many = len(found["identities"])
    assert run(inputs, "--min-images", "13") == 0
    with np.load(inputs["output"] / "centres.npz") as found:
        assert 0 < len(found["identities"]) < many


class Code:
    """What no table holds."""


@pytest.mark.parametrize("value", [{"a": Code()}, [1, 2], {"a": "good"}, {}, 3])
def test_other_pickles_are_refused(inputs, tmp_path, capsys, value):
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps(value))
    assert run(inputs | {"scores": tmp_path / "scores.pkl"}) == 2
    assert run(inputs | {"embeddings": tmp_path / "scores.pkl"}) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["train/n003824/0000_01.jpg\tnan"], "1 of 148 images have no quality"),
        (["train/n9/1.jpg\t0.99"], "no counterpart"),
        (["1.jpg\t0.99"], "have no identity, for example 1.jpg"),
    ],
)
def test_wrong_scores(inputs, tmp_path, capsys, lines, message):
    path = tmp_path / "scores.txt"
    path.write_text(inputs["scores"].read_text() + "\n".join([*lines, ""]))
    assert run(inputs | {"scores": path}) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (inputs["output"] / "items.tsv").exists()


def test_images_without_a_quality_can_be_left_out(inputs, tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text(inputs["scores"].read_text() + "train/n007844/9999_01.jpg\tnan\n")
    assert run(inputs | {"scores": path}, "--skip-unscored") == 0
    assert "9999_01" not in (inputs["output"] / "items.tsv").read_text()


@pytest.mark.parametrize(
    ("count", "message"), [(1, "1 image of one identity"), (5, "no identity has 10 images of quality")]
)
def test_too_few_images(inputs, tmp_path, capsys, count, message):
    path = tmp_path / "scores.txt"
    path.write_text("".join(inputs["scores"].read_text().splitlines(True)[:count]))
    assert run(inputs | {"scores": path}) == 2
    assert message in capsys.readouterr().err


def test_one_identity(inputs, tmp_path, capsys):
    path = tmp_path / "scores.txt"
    path.write_text("".join(line for line in inputs["scores"].read_text().splitlines(True) if "n007844" in line))
    assert run(inputs | {"scores": path}) == 2
    assert "of one identity, train/n007844" in capsys.readouterr().err


def test_a_zero_embedding_and_a_beta_out_of_range(inputs, tmp_path, capsys):
    with np.load(inputs["embeddings"]) as arrays:
        np.savez(tmp_path / "zero.npz", names=arrays["names"], embeddings=arrays["embeddings"] * 0)
    assert run(inputs | {"embeddings": tmp_path / "zero.npz"}) == 2
    assert "is zero or not finite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(inputs, "--beta", "1")


def test_a_second_run_of_one_output_ends_at_once(inputs, capsys):
    inputs["output"].mkdir()
    with only_run(inputs["output"] / "items.tsv"):
        assert run(inputs) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_help_shows_a_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m methods.ediffiqa.prepare --" in capsys.readouterr().out
