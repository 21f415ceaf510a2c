"""The perceptron that tells which quality the five factors imply (CLIB-FIQA, CVPR 2024, confidence calibration)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .checkpoint import build


class ConfidenceMLP(nn.Module):
    """The joint distribution of the factors (N, 72) -> one number for each level of quality (N, 5), no softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(72, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 5)
        self.prelu = nn.PReLU()  # one slope, shared by both layers, as published

    def forward(self, factors: Tensor) -> Tensor:
        return self.fc3(self.prelu(self.fc2(self.prelu(self.fc1(factors)))))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> ConfidenceMLP:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(cls, tensors)
