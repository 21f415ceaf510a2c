"""Scoring with CLIB-FIQA (Ou et al., CVPR 2024): a quality and the probabilities of five factors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from faces.align import Alignment
from model.calibration import Calibration
from model.clib_fiqa import ClibFiqa, expected_quality, marginals
from model.fast import accelerate

from .contract import Batch, Columns
from .face_crops import normalised, prepare_face


class ClibFiqaScoring:
    """CLIB-FIQA on a device."""

    def __init__(
        self,
        network: ClibFiqa,
        dtype: torch.dtype,
        device: torch.device,
        alignment: Alignment,
        calibrated: bool = True,
    ) -> None:
        """`calibrated` False leaves out the calibration of the weights, where they have one."""
        self.preprocessing, self.dtype = network.preprocessing, dtype
        self.prepare = partial(prepare_face, network.preprocessing, alignment)
        clip: Any = network.clip
        clip.visual = accelerate(clip.visual, dtype, device)
        self.calibration = Calibration.from_metadata(network.metadata) if calibrated else None
        self.network = network.to(device)  # the head stays in fp32: its logit scale of about 100 magnifies rounding

    def predict(self, batch: Batch) -> Columns:
        """Quality between 0.1 and 0.9, and the probabilities of all six axes; those of the factors are calibrated."""
        axes = marginals(self.network(normalised(batch, self.preprocessing, self.dtype)))
        quality = expected_quality(axes["quality"])
        return Columns(quality, self.calibration.apply(axes) if self.calibration else axes)
