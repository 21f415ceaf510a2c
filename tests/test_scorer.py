"""Scores: the same for every form of an image, batch, worker count and precision, with a status instead of an error."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from recipe_tensors import golden_shapes, recipe_fill, recipe_tensors, relative_error

import scoring.text_cache
from faces.reader import read_image
from model import load
from model.checkpoint import save_checkpoint
from model.clib_fiqa import ClibFiqa, expected_quality, marginals
from model.clip import CLIP
from model.fast import PRECISIONS, accelerate, pick_precision
from model.iresnet import IResNet
from model.prompts import AXES, FACTORS, joint_prompts
from model.weights import WEIGHTS
from scoring import Score, Scorer, list_models
from scoring.contract import Batch, Columns


@pytest.fixture(scope="module")
def scorer(weights: Path) -> Scorer:
    return Scorer("clib-fiqa", weights, device="cpu", precision="fp32", batch_size=4)


def face(seed: int = 0) -> np.ndarray:
    """A coloured aligned crop, RGB."""
    return recipe.mirror_image(seed)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def qualities(scores: list[Score]) -> list[float | None]:
    return [score.quality for score in scores]


def near(scores: list[Score], tolerance: float = 1e-6) -> object:
    """Equal to qualities up to a tolerance, by default the rounding of fp32 in batches of different sizes."""
    return pytest.approx(qualities(scores), abs=tolerance)


def test_score_is_that_of_the_plain_network(scorer: Scorer, weights: Path) -> None:
    network = load(weights)
    faces = [face(seed) for seed in range(6)]
    resized = torch.from_numpy(np.stack([network.preprocessing.resize(image) for image in faces]))
    with torch.no_grad():
        axes = marginals(network(network.preprocessing.normalise(resized).contiguous()))
    scores = scorer.score(faces)
    assert expected_quality(axes["quality"]).tolist() == near(scores, tolerance=1e-5)
    for axis in FACTORS:
        found = [[score.factors[axis][level] for level in AXES[axis]] for score in scores]
        assert np.allclose(found, axes[axis], atol=1e-5)
    assert np.allclose([score.quality_distribution for score in scores], axes["quality"], atol=1e-5)
    assert len({round(score.quality or 0, 5) for score in scores}) > 1, "different images must differ"


def test_every_form_of_an_image_scores_alike(scorer: Scorer, tmp_path: Path) -> None:
    image = face()
    path = tmp_path / "face.png"
    path.write_bytes(png(image))
    forms = [path, str(path), path.read_bytes(), Image.fromarray(image), image, Image.open(path)]
    scores = scorer.score(forms)
    assert qualities(scores) == near([scores[0]] * len(forms))
    assert [score.path for score in scores] == [str(path), str(path), None, None, None, None]


def test_channel_order_matters_and_bgr_swaps_it(scorer: Scorer) -> None:
    image = face()
    swapped = np.ascontiguousarray(image[..., ::-1])
    assert abs(scorer.score(image).quality - scorer.score(swapped).quality) > 1e-5
    assert scorer.score(swapped, color="bgr") == scorer.score(image)
    grey = image[..., 0].copy()
    assert scorer.score(grey, color="bgr") == scorer.score(grey)


def test_batch_equals_single_and_keeps_the_order(scorer: Scorer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    images = [face(0), face(1), bad, face(2), face(0), tmp_path / "missing.png", face(3), face(4), face(5)]
    together = scorer.score(images)
    alone = [scorer.score(image) for image in images]
    assert [score.status for score in together] == ["ok", "ok", "not_an_image", "ok", "ok", "missing", "ok", "ok", "ok"]
    assert [score.status for score in together] == [score.status for score in alone]
    assert qualities(together) == near(alone)
    assert together[0].quality == pytest.approx(together[4].quality, abs=1e-6), "the same image twice"
    assert qualities(scorer.score(tuple(images[:2]))) == near(together[:2])
    assert scorer.score([]) == []


def test_workers_change_nothing(scorer: Scorer, tmp_path: Path) -> None:
    for seed in range(9):
        (tmp_path / f"{seed}.png").write_bytes(png(face(seed)))
    (tmp_path / "4.png").write_bytes(b"")
    paths = [str(tmp_path / f"{seed}.png") for seed in (5, 3, 4, 8, 0, 0, 1, 2, 6, 7)]
    here = list(scorer.stream(paths))
    assert list(scorer.stream(iter(paths), workers=2)) == here
    assert [score.path for score in here] == paths
    assert [score.status for score in here].count("empty") == 1


def test_bad_images_are_statuses_and_wrong_types_errors(scorer: Scorer, tmp_path: Path) -> None:
    assert scorer.score(tmp_path / "nowhere.jpg").status == "missing"
    assert scorer.score(b"").status == "empty"
    assert scorer.score(png(face())[:2000]).status == "truncated"
    assert scorer.score(tmp_path) == Score(str(tmp_path), "not_a_file")
    with pytest.raises(TypeError, match="cannot score a dict"):
        scorer.score({})
    with pytest.raises(ValueError, match="uint8"):
        scorer.score(face().astype(np.float32))
    with pytest.raises(ValueError, match="neither rgb nor bgr"):
        scorer.score(face(), color="rgba")


def test_alignment(weights: Path, shared_astronaut: np.ndarray) -> None:
    automatic = Scorer(weights=weights, precision="fp32")
    always, never = (Scorer(weights=weights, precision="fp32", align=align) for align in ("yes", "no"))
    assert automatic.score(face()) == never.score(face()), "112x112 is an aligned crop"
    assert always.score(face()).status == "no_face", "but may be told to hold a picture"
    assert automatic.score(np.zeros((200, 160, 3), np.uint8)).status == "no_face"
    photograph = automatic.score(shared_astronaut)
    assert photograph.status == "ok"
    assert photograph == always.score(shared_astronaut)
    assert photograph.quality != never.score(shared_astronaut).quality


@pytest.fixture
def shared_astronaut() -> np.ndarray:
    """A public-domain photograph of 512x512 pixels with one face."""
    from skimage.data import astronaut

    return astronaut()


def test_numbers_that_are_none_are_a_status(weights: Path) -> None:
    scorer = Scorer(weights=weights, precision="fp32")
    healthy = scorer.predict

    def second_image_overflows(batch: Batch) -> Columns:
        columns = healthy(batch)
        columns.quality[1] = torch.inf
        return columns

    scorer.predict = second_image_overflows
    scores = scorer.score([face(0), face(1), face(2)])
    assert [score.status for score in scores] == ["ok", "non_finite", "ok"]
    assert scores[1] == Score(None, "non_finite")
    assert scores[1].aligned_by == "doubtful", "its row says how it was aligned, and which face it was"


def test_a_broken_network_gives_no_numbers(weights: Path, tmp_path: Path) -> None:
    network = load(weights)
    tensors = network.to_tensors(text_tower=False)
    tensors["visual.attnpool.c_proj.bias"] = torch.full_like(tensors["visual.attnpool.c_proj.bias"], torch.inf)
    save_checkpoint(tmp_path / "broken.safetensors", tensors, {"system": "clib-fiqa"})
    assert Scorer(weights=tmp_path / "broken.safetensors").score(face()).status == "non_finite"


def test_score_explains_itself(scorer: Scorer) -> None:
    score = scorer.score(face())
    for axis in FACTORS:
        assert score.label(axis) == max(AXES[axis], key=lambda level, axis=axis: score.factors[axis][level])
        assert math.isclose(sum(score.factors[axis].values()), 1, abs_tol=1e-5)
    assert score.sentence in joint_prompts()
    assert all(f"{score.label(axis)}" in score.sentence for axis in AXES)
    assert f"quality={score.quality:.4f}" in repr(score)
    assert repr(Score("a.jpg", "missing")) == "Score('a.jpg', status='missing')"
    with pytest.raises(ValueError, match="no axis 'colour'"):
        score.label("colour")
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.quality = 1.0  # type: ignore[misc]


def test_every_sentence_can_be_said() -> None:
    prompts = []
    for levels in itertools.product(*AXES.values()):
        factors = {axis: {level: 1.0} for axis, level in zip(AXES, levels, strict=True) if axis != "quality"}
        distribution = tuple(float(level == levels[-1]) for level in AXES["quality"])
        prompts.append(Score("x", "ok", 0.5, factors, distribution).sentence)
    assert prompts == joint_prompts()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(weights: Path, scorer: Scorer, precision: str) -> None:
    half = Scorer(weights=weights, precision=precision)
    faces = [face(seed) for seed in range(4)]
    assert half.dtype == PRECISIONS[precision]
    assert qualities(half.score(faces)) == near(scorer.score(faces), tolerance=0.005)


def test_automatic_precision_is_exact_off_cuda_and_explicit_ones_are_kept() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == pick_precision("auto", torch.device("mps")) == torch.float32
    assert [pick_precision(name, cpu) for name in PRECISIONS] == list(PRECISIONS.values())


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_fast_tower_is_the_tower(golden: Path, monkeypatch: pytest.MonkeyPatch, onednn: bool, batch: int) -> None:
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    shapes = {key: shape for key, shape in golden_shapes(golden / "clip_tiny_keys.json").items() if "visual" in key}
    tensors = recipe_fill(shapes | {"logit_scale": ()})
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = CLIP.from_tensors(tensors).visual(images)
        tower = accelerate(CLIP.from_tensors(tensors).visual, torch.float32, torch.device("cpu"))
        found = [tower(images.contiguous(memory_format=torch.channels_last)) for _ in range(2)]
    assert torch.equal(*found), "the second call runs on packed weights"
    assert float((found[0] - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.fixture
def cr_fiqa(tmp_path: Path) -> IResNet:
    """A narrow IResNet with a quality head, saved as `backbone.pth` in the temporary folder."""
    torch.manual_seed(0)
    network = IResNet((1, 1, 1, 1), (4, 8, 8, 8), 16).eval()
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    return network


def test_cr_fiqa_gives_a_quality_without_reasons(cr_fiqa: IResNet, tmp_path: Path) -> None:
    scorer = Scorer("cr-fiqa", tmp_path / "backbone.pth", precision="fp32")
    score = scorer.score(face())
    with torch.no_grad():
        expected = cr_fiqa(cr_fiqa.preprocessing.normalise(torch.from_numpy(face())[None]))[1]
    assert score.quality == pytest.approx(float(expected), rel=1e-4)
    assert (score.factors, score.quality_distribution, score.sentence, score.label("blur")) == ({}, None, None, None)
    assert repr(score) == f"Score(None, quality={score.quality:.4f})"
    half = Scorer("cr-fiqa", tmp_path / "backbone.pth", precision="bf16").score(face())
    assert half.quality == pytest.approx(float(expected), rel=0.05)


def test_arrays_and_tensors_hold_one_image_or_many(scorer: Scorer) -> None:
    faces = np.stack([face(seed) for seed in range(6)])
    expected = scorer.score(list(faces))
    assert scorer.score(faces) == expected
    assert scorer.score(torch.from_numpy(faces)) == expected
    assert scorer.score([torch.from_numpy(image) for image in faces]) == expected
    assert scorer.score(torch.from_numpy(faces[0])) == scorer.score(faces[0])
    assert scorer.score(torch.from_numpy(faces[..., ::-1].copy()), color="bgr") == expected
    assert scorer.score(torch.from_numpy(faces[0, ..., 0].copy())) == scorer.score(faces[0, ..., 0])
    assert scorer.score(faces[:0]) == []
    for wrong in (faces.transpose(0, 3, 1, 2), faces.astype(np.float32), faces[None]):
        for form in (np.ascontiguousarray(wrong), torch.from_numpy(np.ascontiguousarray(wrong))):
            with pytest.raises(ValueError, match=r"uint8 with the shape \(H, W, 3\)"):
                scorer.score(form)


def test_the_first_argument_names_weights_or_a_method(weights: Path, scorer: Scorer) -> None:
    assert Scorer("clib-fiqa", device="cpu").weights.name == "clib_fiqa_tiny.safetensors"
    assert Scorer(str(weights)).score(face()) == Scorer(weights).score(face()) == Scorer(weights=weights).score(face())
    with pytest.raises(ValueError, match="no weights of diffiqa-r are known: train some"):
        Scorer("diffiqa-r")
    with pytest.raises(ValueError, match="two weights were given, clib-fiqa-r50 and"):
        Scorer("clib-fiqa-r50", weights)
    with pytest.raises(ValueError, match="nor is it a file or one of clib-fiqa, mfn"):
        Scorer("clib-fiqa-huge")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_images(weights: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size {size} is too small"):
        Scorer(weights=weights, batch_size=size)


def test_listed_models_are_as_they_are() -> None:
    pytest.importorskip("timm")
    models = {model.name: model for model in list_models()}
    shipped, others = ["clib-fiqa", "ediffiqa"], ["clib-fiqa-r50", "cr-fiqa-l", "cr-fiqa-s"]
    dsl = ["dsl-fiqa", "dsl-fiqa-vit-b"]
    assert list(models) == [*shipped, *others, *(f"ediffiqa-{size}" for size in "lmst"), *dsl]
    licences = {known.name: known.licence for known in WEIGHTS}
    for name, model in models.items():
        assert model.licence == licences[name]
        assert model.higher_is_better
        assert model.aligned == (name not in dsl)
        if not model.present:
            assert model.bytes is None
            continue
        network = load(name)
        assert model.bytes == model.file.stat().st_size
        assert model.image_size == network.preprocessing.size
        assert model.method == Scorer(name, device="cpu").method
    assert models["clib-fiqa"].present
    assert models["clib-fiqa"].range == (0.1, 0.9)
    assert models["cr-fiqa-l"].range is None


def test_wrong_arguments_say_what_is_right(weights: Path, cr_fiqa: IResNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method 'magic' is none of clib-fiqa, cr-fiqa"):
        Scorer("magic")
    with pytest.raises(ValueError, match="precision 'int3'"):
        Scorer(weights=weights, precision="int3")
    with pytest.raises(ValueError, match="align 'maybe'"):
        Scorer(weights=weights, align="maybe")
    with pytest.raises(ValueError, match="device"):
        Scorer(weights=weights, device="abacus")
    with pytest.raises(ValueError, match="use the method cr-fiqa"):
        Scorer("clib-fiqa", tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="use the method clib-fiqa"):
        Scorer("cr-fiqa", weights)
    cr_fiqa.qs = None
    torch.save(cr_fiqa.state_dict(), tmp_path / "recognition.pth")
    with pytest.raises(ValueError, match="no quality head"):
        Scorer("cr-fiqa", tmp_path / "recognition.pth")
    with pytest.raises(OSError, match="nowhere"):
        Scorer(weights="nowhere.safetensors")


def test_published_checkpoint_is_encoded_once(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: Scorer
) -> None:
    published = tmp_path / "CLIB-FIQA_tiny.pth"
    torch.save(recipe_tensors(golden / "clip_tiny_keys.json"), published)
    monkeypatch.setattr(scoring.text_cache, "FOLDER", tmp_path / "weights")
    expected = pytest.approx(scorer.score(face()).quality, abs=1e-6)
    assert Scorer(weights=published, precision="fp32").score(face()).quality == expected
    (kept,) = (tmp_path / "weights" / "cache").iterdir()
    monkeypatch.setattr(ClibFiqa, "encode_prompts", lambda self: pytest.fail("the sentences were encoded again"))
    assert Scorer(weights=published, precision="fp32").score(face()).quality == expected
    monkeypatch.undo()

    shutil.rmtree(kept.parent)
    kept.parent.write_text("a file where the folder would be")
    monkeypatch.setattr(scoring.text_cache, "FOLDER", tmp_path / "weights")
    assert Scorer(weights=published).score(face()).status == "ok", "a cache that cannot be written is done without"


def test_settings_name_what_scores_depend_on(scorer: Scorer, weights: Path) -> None:
    settings = json.loads(json.dumps(scorer.settings))
    assert settings["precision"] == "fp32"
    assert len(settings["weights"]) == 64
    assert Scorer(weights=weights, precision="bf16").settings != settings


def test_fast_tower_gives_the_published_features(golden: Path) -> None:
    """At the full size of RN50, on the three images of `clib_forward.npz`."""
    shapes = {key: shape for key, shape in golden_shapes(golden / "clip_rn50_keys.json").items() if "visual" in key}
    tower = CLIP.from_tensors(recipe_fill(shapes | {"logit_scale": ()})).visual
    preprocessing = tower.preprocessing
    numbers = np.load(golden / "clib_forward.npz")
    resized = torch.from_numpy(np.stack([preprocessing.resize(image) for image in numbers["images"]]))
    with torch.no_grad():
        features = accelerate(tower, torch.float32, torch.device("cpu"))(preprocessing.normalise(resized))
    assert relative_error(features, numbers["image_features"]) < 1e-4


def test_every_face_of_a_picture_has_a_score(weights: Path, shared_astronaut: np.ndarray, tmp_path: Path) -> None:
    two = np.concatenate([shared_astronaut, shared_astronaut[::2, ::2].repeat(2, axis=0)], axis=1)[:, :768]
    path = tmp_path / "two.png"
    path.write_bytes(png(two))
    scorer = Scorer(weights=weights, precision="fp32", faces="all", batch_size=2)
    scores = scorer.score(path)
    assert [(score.face, score.faces, score.status) for score in scores] == [(0, 2, "ok"), (1, 2, "ok")]
    assert scores[0].box is not None
    assert scores[1].box is not None
    assert scores[0].box[2] < scores[1].box[2]
    paths = [str(path), str(tmp_path / "absent.png"), str(path)]
    streamed = list(scorer.stream(paths))
    assert [(score.path, score.face) for score in streamed] == [
        (paths[0], 0), (paths[0], 1), (paths[1], None), (paths[2], 0), (paths[2], 1),
    ]
    assert qualities(streamed[:2]) == near(scores)
    assert Scorer(weights=weights, precision="fp32", faces="central").score(path).faces == 2
    with pytest.raises(ValueError, match="faces 'some'"):
        Scorer(weights=weights, faces="some")


def test_points_that_are_known_are_used(weights: Path, shared_astronaut: np.ndarray) -> None:
    scorer = Scorer(weights=weights, precision="fp32")
    found = scorer.score(shared_astronaut)
    points = np.reshape(found.points, (5, 2))
    given = scorer.score(shared_astronaut, points=points)
    assert (given.quality, given.aligned_by, given.detection) == (found.quality, "points", None)
    both = scorer.score(shared_astronaut, points=np.stack([points, points + 5]))
    assert [score.face for score in both] == [0, 1]
    assert both[0].quality == pytest.approx(found.quality, abs=1e-6)
    together = scorer.score([shared_astronaut, face()], points=[points, None])
    assert [score.aligned_by for score in together] == ["points", "doubtful"]
    with pytest.raises(ValueError, match="finite numbers"):
        scorer.score(shared_astronaut, points=points[:3])


def test_a_picture_that_shows_no_face_does_not_pass_in_silence(weights: Path) -> None:
    scorer = Scorer(weights=weights, precision="fp32")
    assert scorer.score(np.full((112, 112, 3), 128, np.uint8)).status == "no_face"
    assert scorer.score(face()).aligned_by == "doubtful"
    sample = read_image(Path(__file__).parents[1] / "samples" / "astronaut.png")
    assert scorer.score(sample).aligned_by == "crop"


def test_an_exif_turn_is_no_turn_for_the_search(weights: Path, shared_astronaut: np.ndarray, tmp_path: Path) -> None:
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(shared_astronaut)))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    scorer = Scorer(weights=weights, precision="fp32")
    assert scorer.score(tmp_path / "turned.png").quality == scorer.score(shared_astronaut).quality
