"""Baselines: the published formulas, and that each sees what it is meant to see."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from recipe_tensors import recipe_tensors
from skimage.data import astronaut

from evaluation import baselines
from evaluation.gradient_baselines import (
    attack_similarities,
    faceqan,
    faceqan_quality,
    flip_similarity,
    gradient_magnitudes,
    grafiqs,
    network_score,
    norm_loss,
    prefiqs,
    pruned,
    recorded,
    serfiq,
    serfiq_quality,
)
from model.face_trunk import FaceTrunk
from model.iresnet import IResNet

BLOCKS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def network(golden: Path) -> IResNet:
    return IResNet.from_tensors(recipe_tensors(golden / "baselines/iresnet18_keys.json"))


@pytest.fixture(scope="module")
def small() -> IResNet:
    torch.manual_seed(0)
    return IResNet(layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding=8, quality_head=True, image_size=32).eval()


@pytest.fixture
def face() -> np.ndarray:
    return cv2.resize(astronaut()[30:190, 140:300], (112, 112), interpolation=cv2.INTER_AREA)


def test_serfiq_formula(golden: Path) -> None:
    arrays = np.load(golden / "baselines/serfiq.npz")
    quality = serfiq_quality(torch.from_numpy(arrays["embeddings"])).numpy()
    np.testing.assert_allclose(quality, arrays["score_raw"], rtol=1e-12)


def test_serfiq_is_the_network_with_dropout(small: IResNet) -> None:
    """The trunk runs once; running all of it in training mode of its dropout gives scores of the same size."""
    images = torch.rand(3, 3, 32, 32)
    found = serfiq(small, images)
    assert torch.equal(found, serfiq(small, images))
    assert not small.dropout.training
    slow = IResNet(layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), embedding=8, dropout=0.4, image_size=32)
    slow.load_state_dict(small.state_dict())
    slow.eval().dropout.train()
    with torch.no_grad():
        passes = torch.stack([slow(images)[0] for _ in range(400)], dim=1)
    torch.testing.assert_close(found, serfiq_quality(passes), rtol=0.05, atol=0)


def test_faceqan_formula(golden: Path) -> None:
    arrays = np.load(golden / "baselines/faceqan.npz")
    for prefix in ("formula_", ""):
        similarities, symmetry = (torch.from_numpy(arrays[prefix + key]) for key in ("similarities", "symmetry"))
        quality = faceqan_quality(similarities, symmetry).numpy()
        np.testing.assert_allclose(quality, arrays[prefix + "quality"], rtol=1e-5 if prefix == "" else 1e-12)


def test_faceqan_attack(golden: Path, network: IResNet) -> None:
    """The first two of ten copies of the first of three images: copies do not see each other."""
    arrays = np.load(golden / "baselines/faceqan.npz")
    image = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255
    noise = torch.from_numpy(arrays["noise_f16"].astype(np.float32))
    found = attack_similarities(network, image, noise)
    np.testing.assert_allclose(found.numpy(), arrays["similarities"][:1, :, :2], rtol=1e-4)
    np.testing.assert_allclose(flip_similarity(network, image).numpy(), arrays["symmetry"][:1], rtol=1e-5)


def test_faceqan_is_attack_and_symmetry(small: IResNet) -> None:
    images = torch.rand(2, 3, 32, 32)
    noise = torch.zeros(2, 3, 3, 32, 32)
    expected = faceqan_quality(attack_similarities(small, images, noise), flip_similarity(small, images))
    torch.testing.assert_close(faceqan(small, images, noise), expected)
    torch.testing.assert_close(faceqan(small, images)[1:], faceqan(small, images[1:]), rtol=1e-4, atol=0)
    assert all(p.grad is None for p in small.parameters())


def test_grafiqs(golden: Path, network: IResNet) -> None:
    arrays = np.load(golden / "baselines/grafiqs.npz")
    images = network.preprocessing.normalise(torch.from_numpy(arrays["images"]))
    found = gradient_magnitudes(network, images, BLOCKS)
    for block, magnitude in zip(("image", "block1", "block2", "block3", "block4"), found, strict=True):
        np.testing.assert_allclose(magnitude.numpy(), arrays[f"score_{block}"], rtol=1e-4)
    with recorded(network, []) as (norm_inputs, _), torch.no_grad():
        network(images)
    np.testing.assert_allclose(norm_loss(norm_inputs).numpy(), arrays["bn_loss"], rtol=1e-5)


def test_prefiqs_is_the_distance_to_a_pruned_copy(small: IResNet) -> None:
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(prefiqs(small, pruned(small, 0.0), images), torch.zeros(3))
    copy = pruned(small, 0.25)
    weight, kept = small.conv1.weight.detach().flatten(), copy.conv1.weight.detach().flatten()
    gone = kept == 0
    assert int(gone.sum()) == len(weight) // 4
    assert weight[gone].abs().max() <= weight[~gone].abs().min()
    assert torch.equal(weight[~gone], kept[~gone])
    quality = prefiqs(small, copy, images)
    assert bool(((quality < 0) & (quality >= -2)).all())
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())
    faces = (images.permute(0, 2, 3, 1) * 255).byte().numpy()
    assert network_score("prefiqs", small)(faces).shape == (3,)


def test_grafiqs_leaves_the_network_as_it_was(small: IResNet) -> None:
    images = torch.rand(2, 3, 32, 32)
    quality = grafiqs(small, images, "layer2")
    torch.testing.assert_close(quality[:1], grafiqs(small, images[:1], "layer2"))
    assert (quality < 0).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def test_network_baselines_say_what_they_cannot_do(small: IResNet) -> None:
    with pytest.raises(ValueError, match="needs an IResNet"):
        network_score("serfiq", FaceTrunk())
    with pytest.raises(ValueError, match="no module layer9"):
        network_score("grafiqs", small, "layer9")


def test_random_does_not_depend_on_the_order(face: np.ndarray) -> None:
    faces = np.stack([face, face[::-1], face[:, ::-1], 255 - face])
    found = baselines.random(faces)
    assert len(set(found)) == 4
    np.testing.assert_array_equal(found[::-1], baselines.random(faces[::-1]))


def test_pixel_baselines_see_blur_and_darkness(face: np.ndarray) -> None:
    blurred, dark = cv2.GaussianBlur(face, (0, 0), 3), face // 4
    sharp, soft = baselines.sobel(np.stack([face, blurred]))
    assert sharp > 2 * soft
    bright, dim = baselines.brightness(np.stack([face, dark]))
    assert bright > 2 * dim


def embed(faces: np.ndarray) -> np.ndarray:
    """Grey values at 7x7 points: an FR model simple enough to know the answers."""
    return faces[:, 8::16, 8::16].mean(axis=3).reshape(len(faces), -1).astype(np.float32)


def test_fr_baselines(face: np.ndarray) -> None:
    symmetric = np.concatenate([face[:, :56], face[:, :56][:, ::-1]], axis=1)
    dark = face // 8
    norms = baselines.norm(np.stack([face, dark]), embed)
    np.testing.assert_allclose(norms, np.linalg.norm(embed(np.stack([face, dark])), axis=1), rtol=1e-6)
    flips = baselines.flip(np.stack([face, symmetric]), lambda faces: embed(faces[:, :, 8:]))
    assert flips[0] < flips[1] < 1 + 1e-9
    noises = baselines.noise(np.stack([face, dark]), embed)
    assert noises[1] < noises[0] < 1  # equal noise weighs more in a dark picture
    np.testing.assert_allclose(noises[1:], baselines.noise(dark[None], embed))


def test_sobel_is_the_given_peer(shared: Path) -> None:
    """The sharpness of ../shared/data/peer_scores, on a few faces."""
    from evaluation.scores import read_scores
    from faces.reader import read_image

    peer = read_scores(shared / "data/peer_scores/sobel_celeba_dev.csv")
    names = list(peer)[::300]
    found = baselines.sobel(np.stack([read_image(shared / "data" / name) for name in names]))
    np.testing.assert_allclose(100 * found, [peer[name] for name in names], rtol=1e-5)
