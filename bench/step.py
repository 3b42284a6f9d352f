"""A training step in its three parts, on whatever a method made of a net, and the ways to run a net."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from bench.methods.method import Tuned
from bench.task import Batch, Task
from fastlora.measuring.timing import Work

RATE: Final = 1e-4

PARTS: Final = ("forward", "backward", "optimizer")

# How torch computes Adam's step: in one kernel, by a few operators over all tensors, or tensor by tensor, as
# on a CPU unless told otherwise.
ADAMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class Trainer:
    """Steps through a task's batches with Adam, the same for every method.

    Gradients are let go with the optimizer's part, as `zero_grad` does by default, so that none is held
    while the next forward pass runs. `adam` is a key of ADAMS.
    """

    def __init__(self, tuned: Tuned, task: Task, adam: str = "fused") -> None:
        self.tuned = tuned
        self._run = task.run
        self._batches: Iterator[Batch] = itertools.cycle(task.batches)
        trained = list(tuned.trained.values())
        self._adam = torch.optim.Adam(trained, lr=RATE, **ADAMS[adam]) if trained else None
        self._loss: Tensor | None = None
        self.step = Work(dict(zip(PARTS, (self.forward, self.backward, self.optimize), strict=True)))

    def forward(self) -> None:
        """The next batch's loss."""
        self._loss = self._run(self.tuned.model, next(self._batches)).loss

    def backward(self) -> None:
        """Gradients of that loss; an error where there was no forward pass since the last call."""
        if self._loss is None:
            raise RuntimeError("backward must follow a forward pass")
        loss, self._loss = self._loss, None
        loss.backward()

    def optimize(self) -> None:
        """Adam's step; nothing where nothing is trained."""
        if self._adam is not None:
            self._adam.step()
            self._adam.zero_grad()

    def held_bytes(self) -> int:
        """Bytes of weights, buffers and Adam's state, memory that is shared counted once."""
        states = self._adam.state.values() if self._adam is not None else ()
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        tensors += [*self.tuned.model.parameters(), *self.tuned.model.buffers()]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def checkpointed(model: nn.Module) -> nn.Module:
    """Activation checkpointing of a Transformers model's decoder layers, also through PEFT's wrapper."""
    transformers = cast(Any, model)
    # The second is its name before version 5.
    enable = getattr(transformers, "activation_checkpointing_enable", None)
    (enable or transformers.gradient_checkpointing_enable)({"use_reentrant": False})
    return model


def compiled(model: nn.Module) -> nn.Module:
    """torch.compile with its defaults."""
    return cast(nn.Module, torch.compile(model))


# What people combine with LoRA.
MODES: Final[Mapping[str, Callable[[nn.Module], nn.Module]]] = {
    "eager": lambda model: model,
    "checkpoint": checkpointed,
    "compile": compiled,
    "checkpoint+compile": lambda model: compiled(checkpointed(model)),
}
