"""The net of the walk-through: 20 -> 2000 -> 200 -> 2 with ReLU and log-softmax."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from fastlora.recipes.seeds import weights_drawn_from
from fastlora.recipes.walkthrough.tasks import CLASSES, FEATURES

# The layers that get LoRA, and the one that may be trained in full besides.
ADAPTED: Final = ("seq.0", "seq.2")
HEAD: Final = "seq.4"

# The smaller side of the larger of the adapted layers, 2000 -> 200.
HIGHEST_RANK: Final = 200


class SumMLP(nn.Module):
    """Three linear layers, 442,602 parameters.

    Args:
        seed: Of the initial weights, nn.Linear's; torch's own generator is left as it was.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with weights_drawn_from(seed):
            self.seq = nn.Sequential(
                nn.Linear(FEATURES, 2000, device="cpu", dtype=torch.float32),
                nn.ReLU(),
                nn.Linear(2000, 200, device="cpu", dtype=torch.float32),
                nn.ReLU(),
                nn.Linear(200, CLASSES, device="cpu", dtype=torch.float32),
                nn.LogSoftmax(dim=-1),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Rows [M, 20] -> log-probabilities [M, 2]."""
        y: Tensor = self.seq(x)
        return y
