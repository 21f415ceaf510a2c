"""CLIB-FIQA (Ou et al., CVPR 2024): face image quality and its reasons, from the similarity to 360 sentences."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError
from .clip import CLIP, TEXT_TOWER_KEYS
from .preprocessing import Preprocessing
from .prompts import AXES, FACTORS, JOINT_SHAPE, QUALITY_ANCHORS, joint_prompts, prompts_hash
from .tokenizer import tokenize


class ClibFiqa(nn.Module):
    """CLIP, and the features of the 360 sentences: computed once, kept with the checkpoint.

    The score of an image is `expected_quality(marginals(network(images))["quality"])`, between 0.1 and 0.9.
    """

    text_features: Tensor
    metadata: Mapping[str, str] = {}

    def __init__(
        self, clip: CLIP, text_features: Tensor | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        """`text_features` (360, D) of unit length; None computes them, which needs CLIP's text tower."""
        super().__init__()
        self.clip = clip
        self.preprocessing = preprocessing or clip.preprocessing
        self._tokens: Tensor | None = None
        if text_features is None:
            with torch.no_grad():
                text_features = self.encode_prompts()
        expected = (len(joint_prompts()), clip.visual.output_dim)
        if text_features.shape != expected:
            raise CheckpointError(f"text_features has the shape {tuple(text_features.shape)} instead of {expected}")
        self.register_buffer("text_features", text_features.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> the joint distribution (N, 360) over `JOINT_SHAPE`, float32."""
        return self.logits(images).softmax(dim=-1)

    def logits(self, images: Tensor, text_features: Tensor | None = None) -> Tensor:
        """exp(logit_scale) * cosine of each image and sentence: (N, 3, S, S) -> (N, 360), float32.

        `text_features` (360, D) of unit length replace the stored ones, for training through the text tower.
        """
        return self.logits_of(self.clip.encode_image(images), text_features)

    def logits_of(self, features: Tensor, text_features: Tensor | None = None) -> Tensor:
        """`logits` of the image tower's features (N, D)."""
        text_features = self.text_features if text_features is None else text_features
        # The scale, about 100 in CLIP, would magnify half precision's rounding of the cosines to the first digit.
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.normalize(features.float(), dim=-1) @ text_features.float().T
            return self.clip.logit_scale.float().exp() * cosines

    def encode_prompts(self) -> Tensor:
        """The 360 sentences through the text tower -> (360, D) of unit length."""
        device = self.clip.logit_scale.device
        if self._tokens is None or self._tokens.device != device:  # kept: a copy in every step would make a GPU wait
            self._tokens = prompt_tokens().to(device)
        return F.normalize(self.clip.encode_text(self._tokens).float(), dim=-1)

    @torch.no_grad()
    def refresh_text_features(self) -> None:
        """Compute the stored features again, after the text tower has changed."""
        self.text_features.copy_(self.encode_prompts())

    def to_tensors(self, text_tower: bool = True) -> dict[str, Tensor]:
        """What a checkpoint holds: CLIP's keys at the root, and `text_features`. Scoring needs no text tower."""
        clip = self.clip.state_dict()
        kept = {key: clip[key] for key in clip if text_tower or not key.startswith(TEXT_TOWER_KEYS)}
        return {**kept, "text_features": self.text_features}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> ClibFiqa:
        """From a checkpoint of ours, a published `CLIB-FIQA_R50.pth`, or any CLIP with a text tower; in eval mode.

        Raises CheckpointError when the tensors do not fit, or their text features belong to other sentences.
        """
        metadata = metadata or {}
        if metadata.get("prompts", prompts_hash()) != prompts_hash():
            raise CheckpointError("the text features belong to other sentences than those of model/prompts.py")
        clip_tensors = {key: tensor for key, tensor in tensors.items() if key != "text_features"}
        clip = CLIP.from_tensors(clip_tensors, metadata)
        if "text_features" not in tensors and clip.text_shape is None:
            raise CheckpointError("the checkpoint has neither text_features nor a text tower to compute them")
        preprocessing = Preprocessing.from_metadata(metadata, clip.preprocessing)
        return cls(clip, tensors.get("text_features"), preprocessing).eval()


@cache
def prompt_tokens() -> Tensor:
    """The tokens of the 360 sentences, int64 (360, 29): cut behind the longest one, which changes no feature."""
    tokens = tokenize(joint_prompts())
    return tokens[:, : int(tokens.count_nonzero(dim=1).max())]


def marginals(joint: Tensor) -> dict[str, Tensor]:
    """The joint distribution (N, 360) -> for each of the six axes its distribution (N, levels)."""
    joint = joint.unflatten(-1, JOINT_SHAPE)
    axes = range(1, 1 + len(JOINT_SHAPE))
    return {name: joint.sum([other for other in axes if other != axis]) for axis, name in zip(axes, AXES, strict=True)}


def factor_joint(joint: Tensor) -> Tensor:
    """The joint distribution (N, 360) -> that of the five factors alone (N, 72), in the order of `FACTORS`."""
    assert joint.shape[-1] == 360, f"expected (N, 360), got {tuple(joint.shape)}"
    return joint.unflatten(-1, (-1, JOINT_SHAPE[len(FACTORS)])).sum(-1)


def expected_quality(distribution: Tensor) -> Tensor:
    """Distributions over the five levels of quality (N, 5) -> scores (N,): the mean of `QUALITY_ANCHORS`."""
    return distribution @ torch.tensor(QUALITY_ANCHORS, dtype=distribution.dtype, device=distribution.device)
