"""The command lines of evaluate.py: what they write, what they say, how they end."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

import evaluate
from evaluation.edc import Curve
from evaluation.embeddings import read_embeddings
from evaluation.pairs import write_pairs
from evaluation.plots import edc_figure
from evaluation.scores import read_scores, write_scores
from faces.align import align_face
from model.checkpoint import save_checkpoint, sha256_of
from model.files import only_run
from model.iresnet import IResNet

ROOT = Path(__file__).parents[1]
KEYS = [
    "method", "fr", "fmr", "limit", "threshold", "fnmr0", "errors", "pauc",
    "pauc_relative", "pauc_minus_best", "pauc_relative_ci", "resolvable",
]  # fmt: skip
AS_THEY_ARE = ["--align", "no", "--workers", "0", "--device", "cpu"]  # these faces are noise of 32x32 pixels
METHODS = ("GOOD", "TIED", "RANDOM")


@pytest.fixture(scope="module")
def bench(golden: Path) -> list[str]:
    """The golden benchmark as flags of `edc`."""
    folder = golden / "evaluation"
    scores = [f"{m}={folder}/quality_data/SYN/{m}_SYN.txt" for m in METHODS]
    pairs = str(folder / "quality_data/SYN/pair_list.txt")
    return ["edc", "--pairs", pairs, "--scores", *scores, "--embeddings", f"ArcFace={folder / 'embeddings.npz'}"]


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def iso(bench: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("iso")
    assert evaluate.main([*bench, "--output", str(output), "--bootstrap", "50"]) == 0
    return output


def test_results_are_the_golden_numbers(iso: Path, golden: Path) -> None:
    expected = np.load(golden / "evaluation/expected.npz")
    found = results(iso)
    assert len(found) == 3 * 3 * 3
    for row in found:
        assert list(row) == KEYS
        if row["fmr"] == 1e-4:  # 0.2 of 2000 non-mated pairs
            assert row["resolvable"] is False
            assert all(row[key] is None for key in KEYS[4:11])
            continue
        prefix, at = f"edc/smallest/fmr{row['fmr']:g}", [0.2, 0.3, 0.4].index(row["limit"])
        method = f"{prefix}/{row['method']}"
        assert row["threshold"] == pytest.approx(expected[f"{prefix}/threshold"], abs=1e-9)
        assert row["fnmr0"] == pytest.approx(expected[f"{prefix}/fnmr0"], abs=1e-9)
        assert row["errors"] == round(row["fnmr0"] * 2000)
        assert row["pauc"] == pytest.approx(expected[f"{method}/pauc_raw"][at], abs=1e-9)
        assert row["pauc_relative"] == pytest.approx(expected[f"{method}/pauc_relative"][at], abs=1e-9)
        best = expected[f"{method}/area_theoretical_best"][at]
        assert row["pauc_minus_best"] == pytest.approx(expected[f"{method}/pauc_raw"][at] - best, abs=1e-9)
        low, high = row["pauc_relative_ci"]
        assert low < row["pauc_relative"] < high


def test_cr_fiqa_results_are_the_golden_numbers(bench: list[str], golden: Path, tmp_path: Path) -> None:
    assert evaluate.main([*bench, "--output", str(tmp_path), "--protocol", "cr-fiqa"]) == 0
    expected = np.load(golden / "evaluation/expected.npz")
    found = results(tmp_path)
    assert [(r["method"], r["fmr"]) for r in found] == [(m, fmr) for m in METHODS for fmr in (1e-2, 1e-3, 1e-4)]
    for row in found:
        assert list(row) == KEYS
        assert row["limit"] == 0.95
        assert row["threshold"] is None
        assert row["pauc_relative_ci"] is None
        assert row["resolvable"] is (row["fmr"] > 1e-4)
        if row["resolvable"]:
            at = [1e-2, 1e-3].index(row["fmr"])
            assert row["pauc"] == pytest.approx(expected[f"crfiqa/{row['method']}/auc_stable_order"][at], abs=1e-9)
            fnmr0 = expected[f"crfiqa/{row['method']}/fnmr_stable_order"][0, at]
            assert row["fnmr0"] == pytest.approx(fnmr0, abs=1e-9)
            assert row["errors"] == round(fnmr0 * 2000)
            assert row["pauc_relative"] == pytest.approx(row["pauc"] / (fnmr0 * 0.95), abs=1e-9)


def test_the_record_says_what_it_rests_on(iso: Path, golden: Path) -> None:
    record = json.loads((iso / "results.json").read_text())
    assert record["settings"] == {
        "protocol": "iso", "fmr": [1e-2, 1e-3, 1e-4], "limits": [0.2, 0.3, 0.4], "bootstrap": 50, "seed": 0,
    }  # fmt: skip
    assert record["pairs"] == {"images": 1500, "mated": 2000, "non_mated": 2000}
    assert len(record["inputs"]) == 5
    embeddings = golden / "evaluation/embeddings.npz"
    assert record["inputs"][str(embeddings)] == sha256_of(embeddings)
    assert record["versions"]["numpy"] == np.__version__


def test_tables_and_pictures(iso: Path) -> None:
    with (iso / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == KEYS
    assert [float(row["pauc"]) for row in rows if row["pauc"]] == [r["pauc"] for r in results(iso) if r["resolvable"]]
    markdown = (iso / "tables.md").read_text()
    assert re.search(r"\| GOOD \| 0\.643 \[0\.\d\d, 0\.\d\d\] \| 0\.697 .* \| – \| 0\.00 \|", markdown)
    assert markdown.index("| GOOD") < markdown.index("| TIED") < markdown.index("| RANDOM")  # best first
    latex = (iso / "tables.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    for name in ("edc_ArcFace_0.01", "edc_ArcFace_0.001", "det", "similarities", "qualities"):
        with Image.open(iso / f"{name}.png") as image:
            assert image.format == "PNG"
        assert "</svg>" in (iso / f"{name}.svg").read_text()
    assert not (iso / "edc_ArcFace_0.0001.png").exists()


def test_the_page_shows_faces_and_needs_nothing_else(bench: list[str], tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for i in range(1500):
        Image.new("RGB", (4, 4), (i % 256, 0, 0)).save(faces / f"{i:05d}.png")
    flags = ["--output", str(tmp_path / "out"), "--bootstrap", "0", "--fmr", "0.01", "--images", str(faces)]
    assert evaluate.main([*bench, *flags]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3 * 2 * 16
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    good = dict(line.split() for line in Path(bench[4].partition("=")[2]).read_text().splitlines())
    worst, best = sorted(good, key=lambda name: float(good[name]))[:: len(good) - 1]
    ends = re.search(r"<h2>GOOD</h2>.*?Discarded first(.*?)Kept longest(.*?)<h2>", page, re.DOTALL)
    assert ends is not None
    assert Path(worst).stem in ends[1]
    assert Path(best).stem in ends[2]


def test_the_page_says_what_was_evaluated_and_what_the_words_mean(iso: Path) -> None:
    page = (iso / "report.html").read_text()
    assert "<title>Error versus discard: " in page
    assert time.strftime("%Y") in page
    assert "2,000 mated and 2,000 non-mated" in page
    terms = ("Pair", "FMR", "FNMR(0), errors", "pAUC", "Relative pAUC", "Scaled mean", "METHOD@MODEL")
    assert all(f"<dt>{term}</dt>" in page for term in terms)
    places = [page.index(f"pAUC({limit}) /") for limit in (0.3, 0.2, 0.4)]
    assert places == sorted(places), "the leading limit first"
    assert places[0] < page.index("<h2>Curves</h2>") < places[1]


def test_the_first_limit_leads_and_ends_the_curves(bench: list[str], tmp_path: Path) -> None:
    flags = ["--bootstrap", "0", "--fmr", "0.01", "--limits", "0.4", "0.2"]
    assert evaluate.main([*bench, "--output", str(tmp_path), *flags]) == 0
    text = (tmp_path / "tables.md").read_text()
    assert text.index("pAUC(0.4)") < text.index("pAUC(0.2)")
    curves = {"m": Curve(np.array([0, 0.25, 0.5, 0.75]), np.array([0.4, 0.3, 0.2, 0.1]))}
    for end in (0.4, 1.0):
        axes = edc_figure(curves, "", True, end).axes[0]
        assert axes.get_xlim() == (0, end)
        assert axes.lines[0].get_xdata()[-1] == min(end, 0.98)


def test_without_matplotlib_the_numbers_are_written(
    bench: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert evaluate.main([*bench, "--output", str(tmp_path), "--bootstrap", "0"]) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert results(tmp_path)[0]["pauc_relative_ci"] is None


def small_bench(tmp_path: Path, scores: str, names: list[str] | None = None) -> list[str]:
    """Two identities of two images, one of which is far from its mate."""
    rows = ("a/1.jpg a/2.jpg 1", "b/1.jpg b/2.jpg 1", "a/1.jpg b/1.jpg 0", "a/2.jpg b/2.jpg 0")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    (tmp_path / "s.csv").write_text("path,status,quality\n" + scores)
    vectors = np.array([[1, 0.1], [1, 0], [0, 1], [-0.5, 0.5]])
    names = names or ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]
    np.savez(tmp_path / "e.npz", names=np.array(names), embeddings=vectors)
    return [
        "edc", "--pairs", str(tmp_path / "pairs.tsv"), "--scores", f"m={tmp_path / 's.csv'}", "--embeddings",
        f"fr={tmp_path / 'e.npz'}", "--output", str(tmp_path / "out"), "--fmr", "0.5", "--bootstrap", "5",
    ]  # fmt: skip


def test_an_image_without_a_score_counts_as_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = "a/1.jpg,ok,0.1\na/2.jpg,ok,0.2\nb/1.jpg,no_face,\nb/2.jpg,ok,0.9\n"
    assert evaluate.main(small_bench(tmp_path, scores)) == 0
    assert "1 of 4 images have no ok score" in capsys.readouterr().err
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert record["methods"]["m"]["without_ok_score"] == {"count": 1, "examples": ["b/1.jpg"]}
    row = record["results"][0]
    assert row["fnmr0"] == 0.0
    assert row["pauc"] == 0.0
    assert row["pauc_relative"] is None  # nothing to gain
    assert row["resolvable"] is True


ERRORS = {
    "no counterpart": ("a/1.jpg,ok,0.1\na/2.jpg,ok,0.2\nb/1.jpg,ok,0.3\n", None, "1 of 4 names have no counterpart"),
    "no embedding": ("".join(f"{n},ok,1\n" for n in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")),
                     ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/3.jpg"], "b/2.jpg"),
    "no number": ("a/1.jpg,ok,good\n", None, "line 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_user_errors_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    scores, names, message = ERRORS[case]
    assert evaluate.main(small_bench(tmp_path, scores, names)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "flags",
    [
        ["edc", "--pairs", "p", "--scores", "no-name.csv", "--embeddings", "a=b", "--output", "o"],
        ["edc", "--pairs", "p", "--scores", "a=b", "a=c", "--embeddings", "a=b", "--output", "o"],
        ["edc", "--pairs", "p", "--scores", "a=b", "--embeddings", "a=b", "--output", "o", "--fmr", "1"],
        ["baseline", "unknown", "images", "--output", "o"],
        [],
    ],
)
def test_wrong_calls_end_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(flags)
    assert stopped.value.code == 2


def test_a_list_of_mated_pairs_only_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = small_bench(tmp_path, "a/1.jpg,ok,0.1\na/2.jpg,ok,0.2\n")
    (tmp_path / "pairs.tsv").write_text("a/1.jpg\ta/2.jpg\t1\n")
    assert evaluate.main(flags) == 2
    assert "needs mated and non-mated" in capsys.readouterr().err


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small CR-FIQA, whose dropout and quality head the baselines have to cope with."""
    torch.manual_seed(0)
    net = IResNet(layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding=8, dropout=0.4, image_size=32)
    path = tmp_path_factory.mktemp("fr") / "small.safetensors"
    save_checkpoint(path, net.state_dict(), {"system": "cr-fiqa"})
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of three identities, and one broken file."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "c/2.png").write_bytes(b"no picture")
    return folder


def test_embed(faces: Path, network: Path, tmp_path: Path) -> None:
    output = tmp_path / "e.npz"
    flags = ["embed", str(faces), "--fr", str(network), "--output", str(output), *AS_THEY_ARE]
    assert evaluate.main(flags) == 1  # one picture is broken
    found = read_embeddings(output)
    assert isinstance(found.rows, np.memmap)
    assert found.names == [f"{faces}/{name}.png" for name in ("a/1", "a/2", "b/1", "b/2", "c/1")]
    assert found.rows.shape == (5, 8)
    assert found.rows.dtype == np.float32
    assert found.model_sha256 == sha256_of(network)
    skipped = Path(f"{output}.skipped.tsv").read_text().splitlines()
    assert skipped == ["path\tstatus", f"{faces}/c/2.png\tnot_an_image"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "e.npz.skipped.tsv"]

    assert evaluate.main([*flags, "--flip", "--batch-size", "2"]) == 1
    flipped = read_embeddings(output).rows
    np.testing.assert_allclose(np.linalg.norm(flipped[:, :8], axis=1), 1, rtol=1e-6)
    unit = found.rows / np.linalg.norm(found.rows, axis=1, keepdims=True)
    np.testing.assert_allclose(flipped[:, :8], unit, atol=1e-5)
    assert not np.allclose(flipped[:, :8], flipped[:, 8:], atol=1e-3)


def test_embed_resumes(faces: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from labels import factors, measure

    monkeypatch.setattr(measure, "PART_BATCHES", 1)
    flags = ["embed", str(faces), "--fr", str(network), *AS_THEY_ARE, "--batch-size", "2"]
    assert evaluate.main([*flags, "--output", str(tmp_path / "whole.npz")]) == 1

    with monkeypatch.context() as patch:
        embed_faces = factors.embed_faces
        calls = []

        def stop_in_the_second_batch(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return embed_faces(*arguments)

        patch.setattr("evaluation.extract.embed_faces", stop_in_the_second_batch)
        assert evaluate.main([*flags, "--output", str(tmp_path / "e.npz")]) == 130
    assert not (tmp_path / "e.npz").exists()
    other = ["--flip", "--resume", "--output", str(tmp_path / "e.npz")]
    assert evaluate.main([*flags, *other]) == 2  # other settings do not mix with the parts
    assert evaluate.main([*flags, "--output", str(tmp_path / "e.npz"), "--resume"]) == 1
    whole, resumed = (read_embeddings(tmp_path / name) for name in ("whole.npz", "e.npz"))
    np.testing.assert_array_equal(whole.rows, resumed.rows)
    assert whole.names == resumed.names


@pytest.mark.parametrize("name", evaluate.BASELINES)
def test_every_baseline_has_a_row_for_each_image(faces: Path, network: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "scores.csv"
    flags = ["baseline", name, str(faces), "--fr", str(network), *AS_THEY_ARE]
    assert evaluate.main([*flags, "--output", str(output), "--batch-size", "3"]) == 1
    scores = read_scores(output)
    assert list(scores) == [f"{faces}/{i}.png" for i in ("a/1", "a/2", "b/1", "b/2", "c/1", "c/2")]
    scored = 4 if name == "oracle" else 5  # c/1 has no other image of its identity
    assert np.isfinite(list(scores.values())).tolist() == [i < scored for i in range(6)]
    assert len(set(scores.values())) > 2
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    assert evaluate.main([*flags, "--output", str(tmp_path / "one.csv"), "--batch-size", "1"]) == 1
    np.testing.assert_allclose(list(read_scores(tmp_path / "one.csv").values()), list(scores.values()), rtol=2e-4)


@pytest.mark.parametrize("name", ["norm", "oracle"])
def test_embeddings_take_the_place_of_images(faces: Path, network: Path, tmp_path: Path, name: str) -> None:
    model = [str(faces), "--fr", str(network), *AS_THEY_ARE]
    assert evaluate.main(["embed", *model, "--output", str(tmp_path / "e.npz")]) == 1
    assert evaluate.main(["baseline", name, *model, "--output", str(tmp_path / "images.csv")]) == 1
    stored = ["--embeddings", str(tmp_path / "e.npz"), "--output", str(tmp_path / "stored.csv")]
    assert evaluate.main(["baseline", name, *stored]) == 0
    images, rows = (read_scores(tmp_path / file) for file in ("images.csv", "stored.csv"))
    np.testing.assert_allclose(list(rows.values()), [images[path] for path in rows], rtol=1e-6)
    assert evaluate.main(["baseline", "flip", *stored]) == 2


def test_baselines_say_what_they_need(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["baseline", "norm", str(faces), "--output", str(tmp_path / "s.csv")]) == 2
    assert "--fr" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert evaluate.main(["baseline", "sobel", str(tmp_path / "empty"), "--output", str(tmp_path / "s.csv")]) == 2
    assert "no images were found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fr", "message"),
    [
        ("serfiq", None, "a checkpoint of an IResNet"),
        ("serfiq", "dlib", "not dlib"),
        ("faceqan", "x.onnx", "no .onnx"),
        ("flip", None, ".onnx, a checkpoint, or dlib"),
    ],
)
def test_each_baseline_names_the_models_that_it_takes(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, fr: str | None, message: str
) -> None:
    flags = ["--fr", fr] if fr else []
    assert evaluate.main(["baseline", name, str(faces), *flags, "--output", str(tmp_path / "s.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert ("or dlib" in error) is (name == "flip")


@pytest.mark.parametrize("name", ["faceqan", "serfiq", "grafiqs", "prefiqs", "sobel"])
@pytest.mark.parametrize("flag", ["--fr-mean=0.5", "--fr-std=0.25", "--fr-size=64", "--block=conv1"])
def test_a_baseline_refuses_what_it_does_not_use(
    faces: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flag: str
) -> None:
    call = ["baseline", name, str(faces), "--fr", str(network), "--output", str(tmp_path / "s.csv"), *AS_THEY_ARE]
    used = (name, flag) == ("grafiqs", "--block=conv1")
    assert evaluate.main([*call, flag]) == (1 if used else 2)  # one image of the folder is damaged
    assert used or f"{name} does not use {flag.split('=')[0]}" in capsys.readouterr().err
    assert (tmp_path / "s.csv").exists() == used


def test_help_says_what_each_baseline_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["baseline", "--help"])
    shown = capsys.readouterr().out
    for name, (what, _) in evaluate.BASELINES.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", shown, re.MULTILINE)


def test_an_fmr_without_pairs_says_how_many_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = small_bench(tmp_path, "a/1.jpg,ok,0.1\na/2.jpg,ok,0.2\nb/1.jpg,ok,0.3\nb/2.jpg,ok,0.9\n")
    assert evaluate.main([*flags, "--fmr", "0.5", "1e-6"]) == 0
    assert "FMR 1e-06 needs 1,000,000 non-mated pairs, the list has 2" in capsys.readouterr().err


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", [["embed"], ["baseline", "norm"], ["baseline", "grafiqs"]])
@pytest.mark.parametrize("change", ["model", "image", "nothing"])
def test_resuming_notices_another_model_and_other_images(
    faces: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: list[str], change: str,
) -> None:  # fmt: skip
    shutil.copytree(faces, tmp_path / "faces")
    shutil.copy(network, tmp_path / "fr.safetensors")
    flags = [*command, str(tmp_path / "faces"), "--fr", str(tmp_path / "fr.safetensors"), *AS_THEY_ARE]
    flags += ["--batch-size", "2", "--output", str(tmp_path / "out.npz")]
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.extract.measure", stop)
        assert evaluate.main(flags) == 130
    if change == "model":
        torch.manual_seed(1)
        other = IResNet(layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding=8, dropout=0.4, image_size=32)
        save_checkpoint(tmp_path / "fr.safetensors", other.state_dict(), {"system": "cr-fiqa"})
    if change == "image":  # of the same size in bytes
        image = tmp_path / "faces/a/1.png"
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    changed = {"model": "fr", "image": "images", "nothing": None}[change]
    assert evaluate.main([*flags, "--resume"]) == (2 if changed else 1)
    assert (f"cannot resume: {changed} changed" in capsys.readouterr().err) is bool(changed)


def test_an_output_has_one_run(
    bench: list[str], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.tsv").write_text("a\tb\t1\n")
    calls = [
        [*bench],
        ["embed", str(faces), "--fr", "dlib"],
        ["baseline", "sobel", str(faces)],
        ["pairs", str(faces)],
        ["prepare", str(faces), "--pairs", str(tmp_path / "pairs.tsv")],
        ["compare", str(tmp_path), "--against", "x"],
    ]
    with only_run(tmp_path / "out"):
        for call in calls:
            assert evaluate.main([*call, "--output", str(tmp_path / "out")]) == 2
            assert "another run is writing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photographs_are_aligned_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(astronaut()).save(photos / "a.png")
    Image.fromarray(align_face(astronaut())).save(photos / "b.png")  # an aligned crop of the same face
    Image.fromarray(np.full((200, 300, 3), 128, np.uint8)).save(photos / "c.png")
    flags = [str(photos), "--workers", "0", "--device", "cpu"]
    assert evaluate.main(["embed", *flags, "--fr", "dlib", "--output", str(tmp_path / "e.npz")]) == 1
    assert "2 embeddings" in (shown := capsys.readouterr().out)
    assert "1 images were no crops of 112x112" in shown
    assert Path(f"{tmp_path}/e.npz.skipped.tsv").read_text() == f"path\tstatus\n{photos}/c.png\tno_face\n"
    photo, crop = read_embeddings(tmp_path / "e.npz").rows
    np.testing.assert_array_equal(photo, crop)

    assert evaluate.main(["baseline", "sobel", *flags, "--output", str(tmp_path / "s.csv")]) == 1
    scores = list(read_scores(tmp_path / "s.csv").values())
    assert scores[0] == scores[1]
    assert np.isnan(scores[2])
    assert evaluate.main(["baseline", "sobel", *flags, "--align", "no", "--output", str(tmp_path / "s.csv")]) == 0
    assert "112x112" not in capsys.readouterr().out.splitlines()[-1]


def test_a_file_above_the_wanted_size_is_a_row(faces: Path, tmp_path: Path) -> None:
    flags = [str(faces / "a"), *AS_THEY_ARE, "--output", str(tmp_path / "s.csv"), "--max-file-size", "0.0001"]
    assert evaluate.main(["baseline", "sobel", *flags]) == 1
    assert "too_large" in (tmp_path / "s.csv").read_text()


def test_a_name_that_is_no_utf8_ends_nothing(faces: Path, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"caf\xe9\r.png")
    shutil.copy(faces / "a/1.png", name)
    assert evaluate.main(["baseline", "sobel", str(name), *AS_THEY_ARE, "--output", f"{name}.csv"]) == 0
    assert list(read_scores(f"{name}.csv")) == [str(name)]


def test_edc_takes_names_that_are_no_utf8(tmp_path: Path) -> None:
    """From the pair list to the page; one of them has no score, and is named in the note."""
    odd = os.fsdecode(b"caf\xe9")
    flags = small_bench(tmp_path, "", names=[f"{odd}/1.jpg", f"{odd}/2.jpg", "b/1.jpg", "b/2.jpg"])
    write_pairs(tmp_path / "pairs.tsv", [
        (f"{odd}/1.jpg", f"{odd}/2.jpg", 1), ("b/1.jpg", "b/2.jpg", 1), (f"{odd}/1.jpg", "b/1.jpg", 0),
        (f"{odd}/2.jpg", "b/2.jpg", 0),
    ])  # fmt: skip
    scored = [(name, "ok", 0.5) for name in (f"{odd}/2.jpg", "b/1.jpg", "b/2.jpg")]
    write_scores(tmp_path / "s.csv", [(f"{odd}/1.jpg", "no_face", 0.0), *scored])
    assert evaluate.main(flags) == 0
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert record["methods"]["m"]["without_ok_score"]["examples"] == [f"{odd}/1.jpg"]
    assert b"caf\xe9/1.jpg" in (tmp_path / "out/report.html").read_bytes()
    assert not [path.name for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def test_threads_are_bounded_and_sleep(tmp_path: Path) -> None:
    """OpenMP reads its environment when torch is loaded: by then the script has set it."""
    script = (
        "import os, sys, evaluate; assert 'torch' not in sys.modules; evaluate.main(sys.argv[1:]); import cv2, torch; "
        "print(torch.get_num_threads(), cv2.getNumThreads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    call = ["baseline", "sobel", str(tmp_path), "--output", str(tmp_path / "x.csv"), "--threads", "3"]
    command = [sys.executable, "-c", script, *call]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["3", "3", "PASSIVE"]
