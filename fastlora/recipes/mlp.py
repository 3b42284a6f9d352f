"""The net of the MNIST job: 784 -> 1000 -> 2000 -> 10 with ReLU, far larger than the task needs."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from fastlora.recipes.training import weights_drawn_from

SIZES: Final = (784, 1000, 2000, 10)
LAYERS: Final = ("linear1", "linear2", "linear3")

# The rank of a layer's update is at most the layer's smaller side; this is the largest of the three.
HIGHEST_RANK: Final = max(map(min, SIZES[:-1], SIZES[1:]))


class DigitsMLP(nn.Module):
    """Three linear layers, each of which LoRA replaces or parametrizes.

    Args:
        seed: The seed for the initial weights, nn.Linear's defaults; torch's own generator does not change.
    """

    # nn.Module and not nn.Linear, because with LoRA the layer's class depends on the method.
    linear1: nn.Module
    linear2: nn.Module
    linear3: nn.Module

    def __init__(self, seed: int) -> None:
        super().__init__()
        with weights_drawn_from(seed):
            for name, K, N in zip(LAYERS, SIZES[:-1], SIZES[1:], strict=True):
                self.add_module(name, nn.Linear(K, N, device="cpu", dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of pixels [M, 784] -> logits [M, 10]."""
        x = nn.functional.relu(self.linear1(x))
        x = nn.functional.relu(self.linear2(x))
        logits: Tensor = self.linear3(x)
        return logits

    def layers(self) -> list[nn.Module]:
        """The three layers in order, as they are now."""
        return [self.get_submodule(name) for name in LAYERS]
