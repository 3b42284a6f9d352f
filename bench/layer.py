"""One layer: its W plain or packed, a method at work on it, and the phases that are timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.methods.method import Bare, Method
from bench.task import Batch, Outcome, Task, draw_update
from fastlora.accounting.activations import saved_bytes
from fastlora.layer.base_weights import packed_format
from fastlora.measuring.inputs import Inputs
from fastlora.measuring.timing import Work
from fastlora.routes.dequantize import dequantize

# The phase that methods are judged by.
WHOLE_PASS: Final = "forward+backward"
PHASES: Final = ("forward", "backward", WHOLE_PASS)

# Beside the methods over a packed W: W unpacked alone, once for each pass.
UNPACKING: Final = "unpacking"


# How W is packed, and what a model so loaded says, by which alone PEFT takes its class for such layers.
PACKINGS: Final = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}


def pack(W: Tensor, base: str) -> nn.Module:
    """bitsandbytes' layer of W without a bias: int8, or NF4 with nested scales, computed in W's dtype."""
    bnb: Any = import_module("bitsandbytes").nn
    N, K = W.shape
    if base == "nf4":
        layer = bnb.Linear4bit(K, N, bias=False, compute_dtype=W.dtype, quant_type="nf4", device="meta")
        layer.weight = bnb.Params4bit(W.cpu().clone(), quant_type="nf4", module=layer)
    else:
        layer = bnb.Linear8bitLt(K, N, bias=False, has_fp16_weights=False, device="meta")
        layer.weight = bnb.Int8Params(W.cpu().clone(), requires_grad=False, has_fp16_weights=False)
    on_device: nn.Module = layer.to(W.device)
    return on_device


def unpacked(packed: nn.Module, dtype: torch.dtype) -> Tensor:
    """W [N, K] as the packed layer holds it."""
    format = packed_format(packed)
    assert format is not None
    return dequantize(format.base_of(packed, dtype))


class OneLayer(nn.Module):
    """A net of one linear layer in the inputs' memory, or of a packed one; its bias is frozen."""

    def __init__(self, W: Tensor, b: Tensor | None, base: str = "") -> None:
        super().__init__()
        if base:
            self.linear: Any = pack(W.detach(), base)
            setattr(self, PACKINGS[base], True)
            return
        N, K = W.shape
        # On "meta" no weight is allocated and initialized only to be replaced.
        self.linear = nn.Linear(K, N, bias=b is not None, device="meta", dtype=W.dtype)
        self.linear.weight = nn.Parameter(W.detach())
        if b is not None:
            self.linear.bias = nn.Parameter(b.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[M, K] -> [M, N]."""
        y: Tensor = self.linear(x)
        return y


def layer_task(case: Case, inputs: Inputs) -> Task:
    """A case's layer as a task; its loss is such that the gradient of y is dy."""
    return Task(
        name=None,
        shape=case.labels()["shape"],
        dtype=case.dtype,
        build=lambda: OneLayer(inputs.W, inputs.b, case.base),
        plain=(lambda: OneLayer(unpacked(pack(inputs.W, case.base), case.dtype), None))
        if case.base
        else None,
        names=["linear"],
        update=case.update,
        batches=[{"x": inputs.x, "dy": inputs.dy}],
        run=_weighted_sum,
    )


def _weighted_sum(model: nn.Module, batch: Batch) -> Outcome:
    y = model(batch["x"])
    return Outcome((y.double() * batch["dy"].double()).sum(), y)


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
    layers = [pack(inputs.W, case.base) for inputs in sets]

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
