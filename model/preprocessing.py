"""From an RGB picture to the numbers a network was trained on. Each network carries its own `Preprocessing`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LARGEST_SIZE = 4096   # pixels; a picture of it is a batch of 50 MB
SMALLEST_STD = 1e-6

_constants: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these numbers, made once for each device: a copy from the host in every batch makes a GPU wait."""
    key = values, dtype, device
    if key in _constants:
        return _constants[key]
    with torch.inference_mode(False):  # else it could take no part in a later backward pass
        made = torch.tensor(values, dtype=dtype, device=device)
    if type(made) is Tensor:  # a fake one, while a network is exported, must not outlive the export
        _constants[key] = made
    return made


@dataclass(frozen=True)
class Preprocessing:
    """A square size in pixels, and the mean and standard deviation of x / 255 per RGB channel."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3) -> (size, size, 3) uint8; bilinear, antialiased, without cropping.

        The same pixels as torchvision's `Resize((size, size))` on a PIL image.
        """
        if image.shape[:2] == (self.size, self.size):
            return image
        return np.array(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def normalise(self, batch: Tensor) -> Tensor:
        """RGB (N, size, size, 3), uint8 or float32 in [0, 255], -> float32 (N, 3, size, size), on the batch's device:
        (x / 255 - mean) / std.

        The channels stay innermost in memory (`channels_last`), which is how the pictures arrive and how
        convolutions are fastest.
        """
        expected = (self.size, self.size, 3)
        assert batch.shape[1:] == expected, f"expected (N, *{expected}), got {tuple(batch.shape)}"
        return self.normalise_pixels(batch.permute(0, 3, 1, 2).to(torch.float32, copy=True))

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """float32 RGB in [0, 255] (N, 3, H, W) -> (x / 255 - mean) / std, in place."""
        mean, std = (constant(values, torch.float32, pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return pixels.mul_(1 / (255 * std)).sub_(mean / std)

    def to_json(self) -> str:
        """As the entry `preprocessing` of a checkpoint's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], default: Preprocessing) -> Preprocessing:
        """What the metadata of a checkpoint says, else `default`. Raises ValueError for what cannot be used."""
        if "preprocessing" not in metadata:
            return default
        try:
            fields = json.loads(metadata["preprocessing"])
            size, mean, std = fields["size"], _channels(fields["mean"]), _channels(fields["std"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _unusable(metadata) from error
        if not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE or min(map(abs, std)) < SMALLEST_STD:
            raise _unusable(metadata)
        return cls(size, mean, std)


def _channels(numbers: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(number) for number in numbers)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("a number is not finite")
    return red, green, blue


def _unusable(metadata: Mapping[str, str]) -> ValueError:
    return ValueError(
        f"the preprocessing in the metadata is {metadata['preprocessing'][:120]!r}: a size of 1 to {LARGEST_SIZE} "
        "pixels, and three finite numbers for mean and for std, none of them 0 in std, were expected"
    )


CLIP_PREPROCESSING = Preprocessing(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
FACE_PREPROCESSING = Preprocessing(112, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_FACE_PREPROCESSING = Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DSL_PREPROCESSING = Preprocessing(384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
