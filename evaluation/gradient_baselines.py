"""Baselines that look inside a trained FR network: FaceQAN, SER-FIQ, GraFIQs, PreFIQs. Higher is better in all of them.

FaceQAN: Babnik, Peer, Struc, "FaceQAN: Face Image Quality Assessment Through Adversarial Noise Exploration", ICPR 2022.
SER-FIQ: Terhörst et al., "SER-FIQ: Unsupervised Estimation of Face Image Quality Based on Stochastic Embedding
Robustness", CVPR 2020. GraFIQs: Kolf, Damer, Boutros, "GraFIQs: Face Image Quality Assessment Using Gradient
Magnitudes", CVPRW 2024. PreFIQs (training-free, after its published idea): how far the embedding of a face moves when
the network is pruned. Networks are in eval mode throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.folding import fold_batch_norms
from model.iresnet import IResNet
from model.preprocessing import Preprocessing

FACEQAN_COPIES, FACEQAN_STEPS, FACEQAN_EPSILON, FACEQAN_EXPONENT = 10, 5, 1e-3, 5
PREFIQS_PRUNED = 0.3  # share of the weights of a layer that are set to 0
SERFIQ_PASSES, SERFIQ_DROPOUT = 100, 0.4  # the dropout that ArcFace's and CR-FIQA's networks were trained with


def network_score(name: str, network: nn.Module, block: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """The baseline of this name as a function of RGB uint8 faces (N, S, S, 3); `block` is for grafiqs.

    The network is changed in place, so do not use it elsewhere. For faceqan, which runs it a hundred times for each
    image, its batch norms are folded.

    Raises ValueError when the network cannot serve: serfiq needs an IResNet, whose dropout lies before its last layers.
    """
    if name == "serfiq" and not isinstance(network, IResNet):
        raise ValueError(f"serfiq needs an IResNet, which has a dropout; this is a {type(network).__name__}")
    if block and block not in dict(network.named_modules()):
        raise ValueError(f"the network has no module {block}; it has {', '.join(dict(network.named_children()))}")
    preprocessing: Preprocessing = network.preprocessing  # type: ignore[assignment]
    device = next(network.parameters()).device
    network.requires_grad_(False)
    if name == "faceqan":
        fold_batch_norms(network, torch.zeros(1, 3, preprocessing.size, preprocessing.size, device=device))
        network.to(memory_format=torch.channels_last)

    smaller = pruned(network, PREFIQS_PRUNED) if name == "prefiqs" else None

    def score(faces: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(faces).to(device)
        if name == "faceqan":
            quality = faceqan(network, pixels.permute(0, 3, 1, 2) / 255)
        elif isinstance(network, IResNet) and name == "serfiq":
            quality = serfiq(network, preprocessing.normalise(pixels))
        elif smaller is not None:
            quality = prefiqs(network, smaller, preprocessing.normalise(pixels))
        else:
            quality = grafiqs(network, preprocessing.normalise(pixels), block)
        return quality.double().cpu().numpy()

    return score


def embedding_of(network: nn.Module, images: Tensor) -> Tensor:
    """Normalised images (N, 3, S, S) -> (N, D); IResNet gives a quality as well, which is left out."""
    output = network(images)
    return output[0] if isinstance(output, tuple) else output


def faceqan(network: nn.Module, images: Tensor, noise: Tensor | None = None) -> Tensor:
    """Images (N, 3, S, S) in [0, 1], not normalised -> quality (N,).

    noise (N, K, 3, S, S): the start of the K copies, by default uniform within epsilon and the same for all images.
    """
    if noise is None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(FACEQAN_COPIES, *images.shape[1:], generator=generator) * 2 - 1
        noise = (noise * FACEQAN_EPSILON).to(images.device).expand(len(images), -1, -1, -1, -1)
    similarities = attack_similarities(network, images, noise)
    return faceqan_quality(similarities, flip_similarity(network, images))


def attack_similarities(network: nn.Module, images: Tensor, noise: Tensor, steps: int = FACEQAN_STEPS) -> Tensor:
    """Cosines (N, steps, K) between each image and its copies, taken before each step of the attack.

    A step moves every pixel of a copy by epsilon against the similarity (basic iterative method, without projection).
    """
    preprocessing: Preprocessing = network.preprocessing  # type: ignore[assignment]
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        clean = embedding_of(network, (images - mean) / std)[:, None]  # (N, 1, D)
    copies = (images[:, None] + noise).clamp(-1, 1)  # (N, K, 3, S, S)
    found = []
    for _ in range(steps):
        copies.requires_grad_(True)
        attacked = embedding_of(network, ((copies - mean) / std).flatten(0, 1)).unflatten(0, copies.shape[:2])
        similarity = F.cosine_similarity(clean, attacked, dim=2)  # (N, K)
        (gradient,) = torch.autograd.grad(similarity.sum(), copies)
        copies = copies.detach() - FACEQAN_EPSILON * gradient.sign()
        found.append(similarity.detach())
    return torch.stack(found, dim=1)


@torch.no_grad()
def flip_similarity(network: nn.Module, images: Tensor) -> Tensor:
    """Cosine (N,) between the embeddings of images in [0, 1] and of their mirror images."""
    preprocessing: Preprocessing = network.preprocessing  # type: ignore[assignment]
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    normalised = (images - mean) / std
    return F.cosine_similarity(embedding_of(network, normalised), embedding_of(network, normalised.flip(3)), dim=1)


def faceqan_quality(similarities: Tensor, symmetry: Tensor) -> Tensor:
    """[(1 + mean) / 2 * clip(1 - std, 0, 1) * symmetry] ^ 5 over all steps and copies: (N, steps, K), (N,) -> (N,)."""
    values = similarities.flatten(1)
    spread = (1 - values.std(dim=1, correction=0)).clamp(0, 1)
    return ((1 + values.mean(dim=1)) / 2 * spread * symmetry) ** FACEQAN_EXPONENT


@torch.no_grad()
def serfiq(network: IResNet, images: Tensor) -> Tensor:
    """Normalised images (N, 3, S, S) -> quality (N,), from embeddings under random dropout masks.

    The dropout lies behind the trunk, which therefore runs once. The masks are the same in every call.
    """
    kept: list[Tensor] = []
    handle = network.dropout.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        passes = [network.features(network.fc(F.dropout(kept[0], SERFIQ_DROPOUT))) for _ in range(SERFIQ_PASSES)]
    return serfiq_quality(torch.stack(passes, dim=1))


def serfiq_quality(embeddings: Tensor) -> Tensor:
    """2 / (1 + exp(d)) with d the mean distance of the pairs of T unit vectors: (N, T, D) -> (N,) in (0, 1]."""
    vectors = F.normalize(embeddings, dim=2)
    one, two = torch.triu_indices(vectors.shape[1], vectors.shape[1], offset=1, device=vectors.device)
    distance = torch.stack([F.pairwise_distance(v[one], v[two], eps=0).mean() for v in vectors])
    return 2 * torch.sigmoid(-distance)


@torch.no_grad()
def prefiqs(network: nn.Module, smaller: nn.Module, images: Tensor) -> Tensor:
    """Normalised images (N, 3, S, S) -> minus the distance (N,) in [-2, 0] of their normalised embeddings by a network
    and by its pruned copy."""
    whole, rest = (F.normalize(embedding_of(one, images), dim=1) for one in (network, smaller))
    return -torch.linalg.vector_norm(whole - rest, dim=1)


@torch.no_grad()
def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy in which this share of each convolution's and linear layer's weights is 0: those of smallest magnitude."""
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            count = int(share * module.weight.numel())
            smallest = module.weight.abs().flatten().argsort()[:count]
            module.weight.view(-1)[smallest] = 0
    return copy


def grafiqs(network: nn.Module, images: Tensor, block: str = "") -> Tensor:
    """Normalised images (N, 3, S, S) -> minus the gradient magnitude (N,) at the images or at the output of `block`.

    The published score is the magnitude itself; small ones belong to good images.
    """
    return -gradient_magnitudes(network, images, [block] if block else [])[-1]


def gradient_magnitudes(network: nn.Module, images: Tensor, blocks: Sequence[str]) -> list[Tensor]:
    """Sum of |d loss / d x| (N,) for x the images, then the output of each named module; see `norm_loss`."""
    images = images.detach().requires_grad_(True)
    with recorded(network, blocks) as (norm_inputs, outputs):
        embedding_of(network, images)
    points = [images, *(outputs[block] for block in blocks)]
    gradients = torch.autograd.grad(norm_loss(norm_inputs).sum(), points)
    return [gradient.abs().flatten(1).sum(dim=1) for gradient in gradients]


def norm_loss(norm_inputs: Sequence[tuple[nn.BatchNorm2d, Tensor]]) -> Tensor:
    """How far each image is from what the batch norms saw in training (N,): mean over the layers of the squared
    differences of mean and of biased variance, each averaged over the channels."""
    losses = []
    for norm, x in norm_inputs:  # x (N, C, H, W); the statistics are of one image
        assert norm.running_mean is not None, "a batch norm without running statistics"
        assert norm.running_var is not None, "a batch norm without running statistics"
        mean, variance = x.mean(dim=(2, 3)), x.var(dim=(2, 3), correction=0)
        losses.append((mean - norm.running_mean).square().mean(1) + (variance - norm.running_var).square().mean(1))
    return torch.stack(losses).mean(dim=0)


@contextmanager
def recorded(
    network: nn.Module, blocks: Sequence[str]
) -> Iterator[tuple[list[tuple[nn.BatchNorm2d, Tensor]], dict[str, Tensor]]]:
    """While the context is open, a forward pass records the input of each BatchNorm2d, in order, and the output of each
    named module."""
    norm_inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda norm, inputs: norm_inputs.append((norm, inputs[0])))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    for block in blocks:
        hook = lambda _, __, output, name=block: outputs.__setitem__(name, output)  # noqa: E731
        handles.append(network.get_submodule(block).register_forward_hook(hook))
    try:
        yield norm_inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
