"""The parts of a training step that are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from bench.methods import Layer
from tests.testing import Operands

# y, and the gradients of x and of what the layer trains; nothing where a phase makes none.
Results = tuple[Tensor, tuple[Tensor, ...]]


class Phase(NamedTuple):
    """A part of a step: `timed` is measured, `prepare` runs ahead of it every time, outside the measurement.

    Attributes:
        prepare: Of a layer and its operands: what `timed` takes up; None where it needs nothing.
        timed: Of these and what `prepare` made.
    """

    prepare: Callable[[Layer, Operands], Tensor | None]
    timed: Callable[[Layer, Operands, Tensor | None], Results]

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` does anything."""
        return self.prepare is not _nothing

    def __call__(self, layer: Layer, ops: Operands) -> Results:
        """Both, once."""
        return self.timed(layer, ops, self.prepare(layer, ops))


def forward_backward(layer: Layer, ops: Operands) -> Results:
    """Y, then the gradients of x and of what the layer trains.

    They are new tensors, as in the first step after `zero_grad(set_to_none=True)`: nothing is accumulated.
    """
    y = layer.apply(ops.x)
    return y, torch.autograd.grad(y, (ops.x, *layer.trained), ops.dy)


def _nothing(layer: Layer, ops: Operands) -> None:
    return None


def _forward(layer: Layer, ops: Operands, _: Tensor | None) -> Results:
    """Y, ready for a backward pass; no gradients."""
    return layer.apply(ops.x), ()


def _forward_backward(layer: Layer, ops: Operands, _: Tensor | None) -> Results:
    return forward_backward(layer, ops)


def _apply(layer: Layer, ops: Operands) -> Tensor:
    return layer.apply(ops.x)


def _backward(layer: Layer, ops: Operands, y: Tensor | None) -> Results:
    """The gradients alone, of a y that has just been made.

    Each backward pass gets a forward pass of its own, so that no graph is retained: compiled code refuses
    that, and a method may write over what it saved. As CUDA graphs the two are captured one after the other
    on one stream and replayed in that order; the second reads what the first's replay left in its tensors.
    """
    assert y is not None
    return y, torch.autograd.grad(y, (ops.x, *layer.trained), ops.dy)


PHASES: Final = {
    "forward": Phase(_nothing, _forward),
    "backward": Phase(_apply, _backward),
    "forward+backward": Phase(_nothing, _forward_backward),
}
