"""Scoring with DSL-FIQA: any picture, with or without a face, in any company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from dsl_fiqa_parts import SIZE, landmarks_for, small_network

from faces.align import Alignment
from faces.random_crops import landmark_vector
from faces.reader import ImageError, read_image
from model.weights import WeightsError
from scoring import Scorer
from scoring.dsl_fiqa import Batch, DslFiqaScoring, prepare_photograph

CPU = torch.device("cpu")
SAMPLES = Path(__file__).parents[1] / "samples"


def scoring_of(landmarks: str = "light", align: str = "auto") -> DslFiqaScoring:
    return DslFiqaScoring(small_network(landmarks), torch.float32, CPU, Alignment(align))  # type: ignore[arg-type]


@torch.inference_mode()
def score(scoring: DslFiqaScoring, *images: np.ndarray) -> list[float]:
    prepared = [scoring.prepare(image) for image in images]
    crops = torch.from_numpy(np.stack([one.crops for one in prepared]))
    return scoring.predict(Batch(crops, [one.extra for one in prepared])).quality.tolist()


def test_a_picture_of_the_crops_size_has_the_networks_score() -> None:
    scoring = scoring_of("full")
    image = recipe.mirror_image(5, SIZE)  # without a face
    prepared = scoring.prepare(image)
    assert prepared.crops.shape == (20, SIZE, SIZE, 3)
    assert prepared.status == "no_landmarks"
    crop = scoring.network.preprocessing.normalise(torch.from_numpy(image[None]))
    with torch.inference_mode():
        expected = scoring.network(crop, -torch.ones(1, 70)).item()
    assert score(scoring, image) == [pytest.approx(expected, abs=1e-7)]


def test_landmarks_that_are_known() -> None:
    scoring = scoring_of("full")
    image, points = recipe.mirror_image(5, SIZE), np.full((68, 2), 400.0)
    points[:3] = ((10, 20), (30, 5), (64, 64))
    prepared = prepare_photograph(scoring.network.shape, "auto", 20, image, points)
    assert prepared.status == "ok"
    assert np.array_equal(prepared.extra, landmark_vector(points, np.zeros(2, int), SIZE, 70)[None])


def test_a_score_is_the_same_in_any_company() -> None:
    scoring = scoring_of()
    images = [recipe.mirror_image(seed, side) for seed, side in ((1, 70), (2, 64), (3, 30), (4, 200))]
    together, backwards = score(scoring, *images), score(scoring, *images[::-1])
    assert together == backwards[::-1]
    assert together == [score(scoring, image)[0] for image in images]
    assert len(set(together)) == 4


def test_of_a_large_picture_the_square_around_the_face_is_taken() -> None:
    photograph = np.full((300, 400, 3), 128, np.uint8)
    photograph[90:202, 40:152] = read_image(SAMPLES / "astronaut.png")
    prepared = scoring_of().prepare(photograph)
    assert prepared.status == "ok"
    assert prepared.crops.shape == (20, SIZE, SIZE, 3)
    assert (prepared.extra >= 0).all(axis=2).mean() > 0.6  # of the landmarks lie in a crop, on average
    without = scoring_of("none").prepare(recipe.mirror_image(5, SIZE))
    assert without.status == "ok"
    assert without.extra.shape == (1, 0)


def test_landmarks_change_the_score() -> None:
    network = small_network("light")
    crops = torch.zeros(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        seen = network(crops, landmarks_for(network, 1))
        absent = network(crops, torch.full((1, 68, 2), -10.0))
    assert seen != absent


def test_the_published_encoder_is_asked_for() -> None:
    with pytest.raises(WeightsError, match=r"DE.pt is needed: get it from"):
        DslFiqaScoring(small_network(encoder=False), torch.float32, CPU, Alignment("auto"))


def test_landmarks_of_a_folder(tmp_path: Path) -> None:
    """STEM.npy belongs to STEM.png; an image without a usable one has a status of its own."""
    network, image = small_network("full"), recipe.mirror_image(5, SIZE)
    np.save(tmp_path / "face.npy", np.full((68, 2), 10.0))
    np.save(tmp_path / "other.npy", np.full((68, 2), 1000.0))
    scoring = DslFiqaScoring(network, torch.float32, CPU, Alignment("auto"), crops=3, landmark_folder=tmp_path)
    prepared = scoring.prepare(image, "photos/face.png")
    assert prepared.status == "ok"
    assert prepared.crops.shape == (3, SIZE, SIZE, 3)
    for name, reason in (("other.png", "the file of another picture"), ("none.png", "does not exist")):
        with pytest.raises(ImageError, match=reason) as error:
            scoring.prepare(image, name)
        assert error.value.status == "bad_landmarks"


def test_options_belong_to_a_method() -> None:
    with pytest.raises(ValueError, match="clib-fiqa has no option crops; its options: calibrated"):
        Scorer("clib-fiqa", device="cpu", crops=3)
