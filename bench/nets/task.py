"""What is trained: a net, which of its layers LoRA adapts, and batches with their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.cases import dtype_name
from bench.nets.tuner import Update

Batch = Mapping[str, Tensor]


class Outcome(NamedTuple):
    """Of one forward pass.

    Attributes:
        loss: A scalar.
        logits: What it was computed from.
    """

    loss: Tensor
    logits: Tensor


class Task(NamedTuple):
    """A net and what it is trained on.

    Attributes:
        name: Of the net, in tables and results.
        shape: Its sizes, for the results.
        dtype: Of its weights.
        build: Makes the net, the same weights each time, on the device and in the dtype of the run.
        names: Of the nn.Linear modules that LoRA adapts.
        update: What each of them gets.
        batches: Taken in turn, step by step.
        run: The forward pass with its loss.
    """

    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    build: Callable[[], nn.Module]
    names: Sequence[str]
    update: Update
    batches: Sequence[Batch]
    run: Callable[[nn.Module, Batch], Outcome]

    def labels(self) -> dict[str, Any]:
        """The part of a row that says what was trained."""
        return {
            "model": self.name,
            "dtype": dtype_name(self.dtype),
            "adapter_dtype": dtype_name(self.update.adapter_dtype),
            "shape": self.shape,
            "dropout": self.update.dropout,
        }
