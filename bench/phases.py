"""The parts of a training step that are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from bench.methods import Layer
from tests.testing import Operands


def forward(layer: Layer, ops: Operands) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Y, ready for a backward pass; no gradients."""
    return layer.apply(ops.x), ()


def forward_backward(layer: Layer, ops: Operands) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Y, then the gradients of x and of what the layer trains.

    They are new tensors, as in the first step after `zero_grad(set_to_none=True)`: nothing is accumulated.
    """
    y = layer.apply(ops.x)
    return y, torch.autograd.grad(y, (ops.x, *layer.trained), ops.dy)


Phase = Callable[[Layer, Operands], tuple[Tensor, tuple[Tensor, ...]]]

PHASES: Final[dict[str, Phase]] = {"forward": forward, "forward+backward": forward_backward}
