"""Scoring with eDifFIQA (Babnik et al., TBIOM 2024) and DifFIQA(R) (Babnik et al., IJCB 2023): a quality alone.

Both are a face recognition network with a small head that reads the quality off its features.
"""

from __future__ import annotations

from functools import partial

import torch

from faces.align import Alignment
from model.backbones import embed
from model.ediffiqa import EDifFIQA
from model.fast import accelerate
from model.regressor import QualityRegressor

from .contract import Batch, Columns
from .face_crops import normalised, prepare_face


class FeatureHeadScoring:
    """A backbone and its quality head, on a device."""

    def __init__(
        self, network: EDifFIQA | QualityRegressor, dtype: torch.dtype, device: torch.device, alignment: Alignment
    ) -> None:
        self.preprocessing, self.dtype = network.preprocessing, dtype
        self.prepare = partial(prepare_face, network.preprocessing, alignment)
        self.head = network.head.to(device)  # in fp32: half precision would round many qualities to the same number
        self.backbone = accelerate(network.base_model, dtype, device)

    def predict(self, batch: Batch) -> Columns:
        """Quality, trained on [0, 1] without being clamped to it."""
        features = embed(self.backbone, normalised(batch, self.preprocessing, self.dtype))
        return Columns(self.head(features.float()).squeeze(1))
