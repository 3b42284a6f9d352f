"""One method at work on one layer: the phases of a training step that are timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from bench.cases import Case
from bench.methods.method import Bare, Method
from bench.packing import PACKINGS, unpacked
from bench.task import draw_update, layer_task
from fastlora.accounting.activations import saved_bytes
from fastlora.layer.base_weights import packed_format
from fastlora.measuring.inputs import Inputs
from fastlora.measuring.timing import Work

# The phase that methods are judged by.
WHOLE_PASS: Final = "forward+backward"
PHASES: Final = ("forward", "backward", WHOLE_PASS)

# Beside the methods over a packed W: W unpacked alone, once for each pass.
UNPACKING: Final = "unpacking"


class Layer(NamedTuple):
    """A method on one input set: what maps x [M, K] to y [M, N], and what takes a gradient besides x."""

    apply: Any
    trained: tuple[Tensor, ...]
    x: Tensor
    dy: Tensor

    def forward(self) -> Tensor:
        """Y, ready for a backward pass."""
        y: Tensor = self.apply(self.x)
        return y

    def backward(self, y: Tensor) -> tuple[Tensor, ...]:
        """The gradients of x and of what is trained.

        They are new tensors, as in the first step after `zero_grad`: nothing is accumulated.
        """
        return torch.autograd.grad(y, (self.x, *self.trained), self.dy)

    def forward_backward(self) -> list[Tensor]:
        """Y and the gradients, without their graph.

        While that lives, so do the nodes that stand for x, A and B in it, and they hold on to the stream that
        they were made on: a capture, or a run on another stream, would have to wait for that one.
        """
        y = self.forward()
        gradients = self.backward(y)
        return [y.detach(), *gradients]


def build_layer(method: Method, case: Case, inputs: Inputs) -> Layer:
    """The method's layer around the inputs' W and b, in training, with A and B from a seed."""
    task = layer_task(case, inputs)
    net = task.build()
    tuned = method.tune(net, task.names, task.update)
    draw_update(tuned, case.adapter_dtype)
    module = net.get_submodule("linear")
    apply = module.bound() if isinstance(module, Bare) else module
    return Layer(apply, tuple(tuned.trained.values()), inputs.x, inputs.dy)


def phase_works(layers: Sequence[Layer]) -> Mapping[str, Work]:
    """Each phase once on every layer, so that no call finds its inputs in the cache.

    Each backward pass alone gets a forward pass of its own, so that no graph is retained: compiled code
    refuses that, and a method may write over what it saved. As CUDA graphs the two are captured one after the
    other on one stream and replayed in that order; the second reads what the first's replay left.
    """
    prepared: list[Tensor] = []

    def forward() -> None:
        for layer in layers:
            layer.forward()

    def prepare() -> None:
        prepared[:] = [layer.forward() for layer in reversed(layers)]

    def backward() -> None:
        for layer in layers:
            layer.backward(prepared.pop())  # what a backward pass saved goes with it

    def both() -> None:
        for layer in layers:
            layer.backward(layer.forward())

    works = (Work.of(forward), Work.of(backward, prepare), Work.of(both))
    return dict(zip(PHASES, works, strict=True))


def unpacking_works(case: Case, sets: Sequence[Inputs]) -> Mapping[str, Work]:
    """Of a packed case, each phase without its products: W unpacked as often as a layer of ours does it."""
    layers = [PACKINGS[case.base](inputs.W, None) for inputs in sets]

    def unpack(times: int) -> None:
        for layer in layers:
            for _ in range(times):
                unpacked(layer, case.dtype)

    return {phase: Work.of(partial(unpack, times)) for phase, times in zip(PHASES, (1, 1, 2), strict=True)}


def layer_saved_bytes(method: Method, case: Case, device: torch.device) -> int:
    """Bytes beyond W, b, A and B that the method's forward pass saves; x counts where it is saved."""
    inputs = case.inputs(device)
    layer = build_layer(method, case, inputs)
    own = [tensor for tensor in (inputs.W, inputs.b, *layer.trained) if tensor is not None]
    for module in layer.apply.modules() if case.base else ():
        own += module.parameters(recurse=False)
        if (format := packed_format(module)) is not None:
            own += format.base_of(module, format.values_dtype(module)).tensors
    return saved_bytes(layer.forward, own)
