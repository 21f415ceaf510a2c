"""DifFIQA's diffusion model against numbers computed with the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_tensors import golden_shapes, recipe_fill, recipe_tensors, relative_error, shapes_of
from torch import Tensor

from methods.diffiqa.losses import diffusion_loss
from model import load
from model.checkpoint import CheckpointError, save_checkpoint
from model.diffusion import GaussianDiffusion, LinearAttention, Unet, ddim_times, standardise_once

TINY = "diffiqa_unet_tiny_keys.json"


def read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


@pytest.fixture
def tiny(golden: Path) -> GaussianDiffusion:
    return GaussianDiffusion(Unet.from_tensors(recipe_tensors(golden / "diffiqa" / TINY)), image_size=16).eval()


def diffusion_tensors(golden: Path) -> dict[str, Tensor]:
    """A tiny network's state dict, with the true schedule."""
    unet = Unet.from_tensors(recipe_tensors(golden / "diffiqa" / TINY))
    return GaussianDiffusion(unet).state_dict()


@pytest.mark.parametrize("name", ["diffiqa_unet_keys.json", TINY])
def test_published_unet_keys_load_strictly(golden: Path, name: str) -> None:
    keys = golden / "diffiqa" / name
    with torch.device("meta"):
        network = Unet.shaped_like({key: torch.empty(shape) for key, shape in golden_shapes(keys).items()})
    assert list(shapes_of(network).items()) == list(golden_shapes(keys).items())


def test_published_diffusion_keys_load_strictly(golden: Path) -> None:
    shapes = golden_shapes(golden / "diffiqa" / "diffiqa_diffusion_keys.json")
    network = GaussianDiffusion.from_tensors(recipe_fill(shapes))
    assert list(shapes_of(network).items()) == list(shapes.items())
    assert network.preprocessing.size == 112


def test_missing_and_unexpected_keys_are_named(golden: Path) -> None:
    tensors = diffusion_tensors(golden)
    tensors["model.mid_attn.fn.fn.mem_kv"] = tensors.pop("model.mid_attn.fn.norm.g")
    with pytest.raises(CheckpointError, match=r"1 missing \(model.mid_attn.fn.norm.g\); 1 unexpected \(model.mid_attn"):
        GaussianDiffusion.from_tensors(tensors)


def test_published_schedule(golden: Path, tiny: GaussianDiffusion) -> None:
    expected = read(golden / "diffiqa" / "diffiqa_schedule.npz")
    at = expected.pop("t")
    for name, values in expected.items():
        found = tiny.get_buffer(name.removeprefix("full/"))
        torch.testing.assert_close(found if name.startswith("full/") else found[at], values, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def test_published_forward_at_full_size(shared: Path) -> None:
    folder = shared / "golden" / "diffiqa"
    expected = read(folder / "diffiqa_unet_forward.npz")
    network = GaussianDiffusion(Unet.from_tensors(recipe_tensors(folder / "diffiqa_unet_keys.json"))).eval()
    torch.testing.assert_close(
        network.model.time_mlp(expected["time_embedding_t"]), expected["time_embedding"], rtol=1e-4, atol=1e-5
    )
    images = network.preprocessing.normalise(expected["images"])
    noisy = network.q_sample(images, expected["t"], expected["noise"])
    torch.testing.assert_close(noisy, expected["x_noisy"], rtol=1e-5, atol=1e-5)
    assert relative_error(network(expected["x_noisy"], expected["t"]), expected["out"]) < 1e-4
    assert relative_error(network(expected["x_noisy"], expected["t_second"]), expected["out_second"]) < 1e-4
    clean, noise = network.predictions(expected["x_noisy"], expected["t"])
    assert relative_error(clean, expected["pred_x_start_clipped"]) < 1e-3
    assert relative_error(noise, expected["pred_noise"]) < 1e-3


@torch.no_grad()
def test_published_reconstruction(golden: Path, tiny: GaussianDiffusion) -> None:
    expected = read(golden / "diffiqa" / "diffiqa_ddim.npz")
    time = torch.full((3,), int(expected["t"]))
    noisy = tiny.q_sample(expected["x"], time, expected["noise_forward"])
    torch.testing.assert_close(noisy, expected["x_noisy"])
    found = tiny.reconstruct(noisy, int(expected["t"]), iter(expected["noises"]))
    torch.testing.assert_close(found, expected["reconstruction"], rtol=1e-4, atol=3e-5)
    assert ddim_times(5, 6) == expected["time_list"].tolist()


@torch.no_grad()
def test_five_steps_do_the_work_of_six(golden: Path, tiny: GaussianDiffusion) -> None:
    expected = read(golden / "diffiqa" / "diffiqa_ddim.npz")
    found = tiny.reconstruct(expected["x_noisy"], 5, iter(expected["noises"]), steps=5)
    torch.testing.assert_close(found, expected["reconstruction"], rtol=0, atol=5e-3)
    assert ddim_times(5, 5) == [4, 3, 2, 1, 0, -1]


def test_published_training_loss(golden: Path, tiny: GaussianDiffusion) -> None:
    expected = read(golden / "diffiqa" / "diffiqa_ddim.npz")
    low, high = expected["train_low"] * 2 - 1, expected["train_high"] * 2 - 1
    loss = diffusion_loss(tiny, low, high, expected["train_t"], expected["noise_forward"])
    torch.testing.assert_close(loss, expected["train_loss"], rtol=1e-4, atol=0)


def test_training_checkpoint_gives_its_model(tmp_path: Path, golden: Path) -> None:
    tensors = diffusion_tensors(golden)
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    ema = {"initted": torch.tensor(True), "step": torch.tensor(3), "ema_model.model.init_conv.weight": torch.ones(2)}
    content = {"step": 3, "model": tensors, "opt": optimizer.state_dict(), "ema": ema, "scaler": None}
    torch.save(content, tmp_path / "model.pt")
    network = load(tmp_path / "model.pt")
    assert isinstance(network, GaussianDiffusion)
    assert not network.training
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[key])


def test_the_image_size_is_in_the_metadata(tmp_path: Path, golden: Path, tiny: GaussianDiffusion) -> None:
    metadata = {"system": "diffiqa-diffusion", "preprocessing": tiny.preprocessing.to_json()}
    save_checkpoint(tmp_path / "tiny.safetensors", tiny.state_dict(), metadata)
    assert load(tmp_path / "tiny.safetensors").preprocessing.size == 16


@torch.no_grad()
def test_linear_attention_keeps_small_sums_in_half_precision() -> None:
    """Over 112 x 112 positions the sums lie below what float16 can hold."""
    torch.manual_seed(0)
    attention = LinearAttention(16, heads=1)
    torch.nn.init.zeros_(attention.to_out[0].bias)
    attention.to_out[0].weight.mul_(1e4)  # so that the norm behind it sees the differences
    x = torch.randn(1, 16, 112, 112)
    with torch.autocast("cpu", torch.float16):
        half = attention(x)
    assert relative_error(half.float(), attention(x)) < 0.05


@torch.no_grad()
def test_linear_attention_is_the_published_one() -> None:
    """The order of the products is another one: here the values and the output of each head are made."""
    torch.manual_seed(0)
    attention, x = LinearAttention(6, heads=2), torch.randn(3, 6, 4, 5)
    queries, keys, values = (part.reshape(3, 2, 32, 20) for part in attention.to_qkv(x).chunk(3, dim=1))
    context = torch.einsum("nhdp,nhep->nhde", keys.softmax(dim=3), values / 20)
    found = torch.einsum("nhde,nhdp->nhep", context, queries.softmax(dim=2) * 32**-0.5)
    torch.testing.assert_close(attention(x), attention.to_out(found.reshape(3, 64, 4, 5)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_standardised_once_give_the_same_outputs() -> None:
    torch.manual_seed(0)
    network = Unet(16, (1, 2), heads=1).eval()
    x, time = torch.randn(2, 3, 16, 16), torch.tensor([0, 4])
    expected = network(x, time)
    standardise_once(network)
    assert not any(type(module).__name__ == "WeightStandardisedConv2d" for module in network.modules())
    assert torch.equal(network(x, time), expected)
