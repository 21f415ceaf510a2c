"""DifFIQA's quality against published numbers, and its command on tiny networks."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffiqa_parts import SIDE, write_models, write_pictures

from labels.recognition import Recognizer, load_recognizer
from methods.diffiqa import score as script
from methods.diffiqa.quality import PRESETS, Procedure, cosine, embed, look, make_scorer, noise_of, quality
from methods.diffiqa.score import main, parse_arguments, procedure_of
from model import load
from model.preprocessing import FACE_PREPROCESSING

CPU = torch.device("cpu")
SHORT = ["--repeats", "2", "--ddim-steps", "2", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_pictures(folder, 5)
    return folder


def test_published_quality(golden: Path) -> None:
    with np.load(golden / "diffiqa" / "diffiqa_quality.npz") as published:
        repeats = int(published["repeats"])
        names = [name for name in published.files if published[name].ndim == 2]
        stacks = {name: published[name].reshape(4, repeats, -1) for name in names}
        expected = published["quality"]
        terms = {name: published[f"term/{name}"] for name in ("noisy", "recon", "noisy_flip", "recon_flip", "flip")}
    clean, mirror = stacks["starting"][:, 0], stacks["starting_flip"][:, 0]
    noisy = np.stack([stacks["noisy"], stacks["noisy_flip"]], axis=1)
    reconstructed = np.stack([stacks["recon"], stacks["recon_flip"]], axis=1)
    for name, term in terms.items():
        views = stacks[{"flip": "starting_flip"}.get(name, name)]
        np.testing.assert_allclose(cosine(clean[:, None], views).mean(axis=1), term, atol=1e-6)
    np.testing.assert_allclose(quality(clean, mirror, noisy, reconstructed), expected, atol=1e-6)


def test_the_mirrored_view_is_estimated_where_it_is_left_out() -> None:
    rng = np.random.default_rng(0)
    clean, mirror = rng.normal(size=(2, 3, 8))
    views = rng.normal(size=(3, 1, 4, 8))
    to_view, to_mirror = cosine(clean[:, None, None], views).mean(axis=(1, 2)), cosine(clean, mirror)
    expected = (2 * to_view + 2 * to_view * to_mirror + to_mirror) / 5
    np.testing.assert_allclose(quality(clean, mirror, views, views), expected)


def test_views_are_what_the_procedure_says(models: Path) -> None:
    diffusion = load(models / "diffusion.safetensors")
    procedure = Procedure(repeats=3, ddim_steps=6)
    face = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    noise = noise_of(face, procedure)
    assert noise.shape == (2, 3, 6, 3, SIDE, SIDE)
    images = diffusion.preprocessing.normalise(torch.from_numpy(face)[None])
    with torch.inference_mode():
        noisy, reconstructed = look(diffusion, images, noise[None], procedure)
        time = torch.full((1,), 5)
        for view, image in enumerate((images, images.flip(3))):
            for repeat in range(3):
                expected = diffusion.q_sample(image, time, noise[view, repeat, :1])
                torch.testing.assert_close(noisy[:, view, repeat], expected)
                clean = diffusion.reconstruct(expected, 5, iter(noise[view, repeat, 1:, None]), 6)
                torch.testing.assert_close(reconstructed[:, view, repeat], clean, atol=1e-4, rtol=1e-4)


def test_noise_follows_from_pixels_and_seed() -> None:
    face, other = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)
    own, shared = Procedure(repeats=2), Procedure(repeats=2, noise="shared")
    assert torch.equal(noise_of(face, own), noise_of(face.copy(), own))
    assert not torch.equal(noise_of(face, own), noise_of(other, own))
    assert not torch.equal(noise_of(face, own), noise_of(face, replace(own, seed=1)))
    assert torch.equal(noise_of(face, shared), noise_of(other, shared))
    assert not torch.equal(noise_of(face, shared), noise_of(face, replace(shared, seed=1)))
    assert abs(noise_of(face, own).std() - 1) < 0.1


def test_the_fr_model_sees_real_numbers_outside_the_range() -> None:
    seen = []

    def remember(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return pixels.reshape(len(pixels), -1)[:, :4]

    recognizer = Recognizer("probe", "", FACE_PREPROCESSING, 4, remember)
    images = torch.linspace(-1.1, 1.1, 112)[None, None, None].expand(2, 1, 3, 112, 112)
    assert embed(recognizer, images).shape == (2, 1, 4)
    np.testing.assert_allclose(seen[0][0, 0, :, 0], np.linspace(-12.75, 267.75, 112), atol=1e-3)


def test_embedding_floats_leaves_them_as_they_are(models: Path) -> None:
    recognizer = load_recognizer(models / "fr.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    floats = pixels.astype(np.float32)
    np.testing.assert_allclose(recognizer.embed(floats), recognizer.embed(pixels), atol=1e-6)
    np.testing.assert_array_equal(floats, pixels)


def test_batches_change_nothing(models: Path) -> None:
    diffusion, recognizer = load(models / "diffusion.safetensors"), load_recognizer(models / "fr.safetensors")
    scorer = make_scorer(diffusion, recognizer, Procedure(repeats=2, ddim_steps=2), CPU)
    faces = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    together = scorer(faces)
    assert len(set(together)) == 4
    assert ((together > -1) & (together < 1)).all()
    np.testing.assert_array_equal(scorer(faces[[2, 0]]), together[[2, 0]])
    np.testing.assert_array_equal(scorer(faces[3:]), together[3:])


def test_half_precision_is_close(models: Path) -> None:
    diffusion, recognizer = load(models / "diffusion.safetensors"), load_recognizer(models / "fr.safetensors")
    face = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)
    full, half = (
        make_scorer(diffusion, recognizer, Procedure(repeats=1, ddim_steps=2), CPU, dtype)(face)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert full != half
    np.testing.assert_allclose(half, full, atol=0.02)


def run(models: Path, *arguments: object) -> list[str]:
    networks = ["--weights", f"{models}/diffusion.safetensors", "--fr", f"{models}/fr.safetensors"]
    return ["score", *networks, "--align", "no", *SHORT, *map(str, arguments)]


def table(path: Path) -> dict[str, tuple[str, str]]:
    with path.open(newline="") as file:
        return {row["path"]: (row["status"], row["quality"]) for row in csv.DictReader(file)}


def test_order_batches_and_workers_change_nothing(
    models: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", run(models, faces, "--output", tmp_path / "a.csv"))
    assert main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.csv'}\n"
    first = table(tmp_path / "a.csv")
    assert list(first) == [str(faces / name) for name in ("a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png")]
    assert len({value for _, value in first.values()}) == 5
    reversed_names = list(reversed(first))
    call = run(models, *reversed_names, "--output", tmp_path / "b.csv", "--batch-size", "2", "--workers", "2")
    monkeypatch.setattr("sys.argv", call)
    assert main() == 0
    assert table(tmp_path / "b.csv") == first
    assert list(table(tmp_path / "b.csv")) == reversed_names
    monkeypatch.setattr("sys.argv", run(models, faces, "--output", tmp_path / "c.csv", "--seed", "1"))
    assert main() == 0
    assert table(tmp_path / "c.csv") != first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "b.csv", "c.csv"]


def test_bad_images_are_rows(
    models: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    paths = [tmp_path / "text.png", faces / "a" / "0.png", tmp_path / "gone.png"]
    monkeypatch.setattr("sys.argv", run(models, *paths, "--output", tmp_path / "scores.csv"))
    assert main() == 1
    rows = list(table(tmp_path / "scores.csv").values())
    assert [status for status, _ in rows] == ["not_an_image", "ok", "missing"]
    assert [bool(value) for _, value in rows] == [False, True, False]
    assert "2 of 3 images have no score: 1 not_an_image, 1 missing" in capsys.readouterr().err


def test_interrupted_run_resumes_to_the_same_table(
    models: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", run(models, faces, "--output", tmp_path / "straight.csv"))
    assert main() == 0
    call = run(models, faces, "--output", tmp_path / "broken.csv", "--batch-size", "1")
    monkeypatch.setattr("labels.measure.PART_BATCHES", 1)
    calls = []

    def stop_after_three(*arguments):
        scorer = make_scorer(*arguments)

        def stopping(batch):
            calls.append(len(batch))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return scorer(batch)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(script, "make_scorer", stop_after_three)
        patch.setattr("sys.argv", call)
        assert main() == 130
        assert not (tmp_path / "broken.csv").exists()
        patch.setattr("sys.argv", [*call, "--resume", "--seed", "1"])
        assert main() == 2  # another seed is another run
        patch.setattr("sys.argv", [*call, "--resume"])
        assert main() == 0
    assert sum(calls) == 4 + 2  # three of five were kept
    assert (tmp_path / "broken.csv").read_bytes() == (tmp_path / "straight.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--weights", "fr.safetensors"), "DifFIQA's diffusion model was expected"),
        (("--weights", "none.pt"), "no such file"),
        (("--fr", "diffusion.safetensors"), "an FR model was expected"),
        (("--step", "0"), "at least 1 was expected"),
        (("--seed", str(2**63)), "--seed must be at most"),
    ],
)
def test_wrong_calls_are_named(
    models: Path, faces: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    call = run(models, faces, "--output", tmp_path / "scores.csv")[1:]
    command = [sys.executable, "-m", "methods.diffiqa.score", *call, change[0], change[1]]
    if change[1].endswith("safetensors"):
        command[-1] = str(models / change[1])
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(script.__file__).parents[2])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_presets_and_flags() -> None:
    base = ["x.png", "--weights", "w", "--fr", "dlib", "--output", "o.csv"]
    assert procedure_of(parse_arguments(base)) == Procedure() == PRESETS["full"]
    assert Procedure().passes() == 120
    fast = procedure_of(parse_arguments([*base, "--preset", "fast", "--seed", "3", "--views", "1"]))
    assert fast == replace(PRESETS["fast"], seed=3, views=1)
    assert PRESETS["fast"].passes() * 10 <= PRESETS["full"].passes()
    with pytest.raises(ValueError, match="from 1 on"):
        Procedure(repeats=0)
