"""Scoring with CR-FIQA (Boutros et al., CVPR 2023): a quality without reasons."""

from __future__ import annotations

from functools import partial

import torch

from faces.align import Alignment
from model.fast import accelerate
from model.iresnet import IResNet

from .contract import Batch, Columns
from .face_crops import normalised, prepare_face


class CrFiqaScoring:
    """CR-FIQA's backbone with its quality head, on a device. Raises ValueError for a backbone without the head."""

    def __init__(self, network: IResNet, dtype: torch.dtype, device: torch.device, alignment: Alignment) -> None:
        if network.qs is None:
            raise ValueError("this IResNet has no quality head (qs.weight, qs.bias): it recognises faces, no scores")
        self.preprocessing, self.dtype = network.preprocessing, dtype
        self.prepare = partial(prepare_face, network.preprocessing, alignment)
        # The head stays in fp32: half precision would round many qualities to the same number.
        self.head, network.qs = network.qs.to(device), None
        self.backbone = accelerate(network, dtype, device)

    def predict(self, batch: Batch) -> Columns:
        """Quality without bounds."""
        embeddings = self.backbone(normalised(batch, self.preprocessing, self.dtype))[0]
        return Columns(self.head(embeddings.float()).squeeze(1))
