"""The two tasks of the walk-through, both on the sum of a row of random numbers, and the net for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from fastlora.recipes.training import weights_drawn_from

FEATURES: Final = 20
CLASSES: Final = 2

# The layers that get LoRA, and the one that may also be trained in full.
ADAPTED: Final = ("seq.0", "seq.2")
HEAD: Final = "seq.4"

# The smaller side of the larger adapted layer, 2000 -> 200.
HIGHEST_RANK: Final = 200


class Rows(NamedTuple):
    """Labelled rows.

    Attributes:
        x: [n, 20] fp32, uniform in [0, 1).
        labels: [n] int64, 0 or 1.
    """

    x: Tensor
    labels: Tensor

    def rows(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x and the labels, ready for a net."""
        return self.x.to(device=device, dtype=dtype), self.labels.to(device)


class Task(NamedTuple):
    """Rows to train on and others to test on."""

    train: Rows
    test: Rows


def sine_task(generator: torch.Generator) -> Task:
    """The task for pretraining: is sin(sum) > 0? 1,000 rows, 800 of them for training."""
    return _task(1000, 800, lambda sums: sums.sin() > 0, generator)


def threshold_task(generator: torch.Generator) -> Task:
    """The downstream task: is the sum > 10? 500 rows, 300 of them for training."""
    return _task(500, 300, lambda sums: sums > FEATURES / 2, generator)


def _task(count: int, train: int, label: Callable[[Tensor], Tensor], generator: torch.Generator) -> Task:
    x = torch.rand(count, FEATURES, generator=generator)
    labels = label(x.sum(1)).long()
    return Task(Rows(x[:train], labels[:train]), Rows(x[train:], labels[train:]))


class SumMLP(nn.Module):
    """Three linear layers, 442,602 parameters.

    Args:
        seed: The seed for the initial weights, nn.Linear's defaults; torch's own generator does not change.
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
