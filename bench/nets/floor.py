"""The least that a net's step costs: its linear layers, one after the other, with LoRA's products.

What lies between them (norms, attention, activations, the loss) is not counted, so that no net reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.ceilings import Ceilings
from bench.floor import Floor, floor_of
from bench.nets.task import Task
from bench.nets.unfused import UNFUSED
from fastlora.cost import Cost, Problem


class Use(NamedTuple):
    """One call of a linear layer.

    Attributes:
        problem: Its sizes; r = 0 where it has no update.
        needs_dx: Whether a gradient of x is asked for, as in the first layer it is not.
        goes_back: Whether its backward pass runs at all.
    """

    problem: Problem
    needs_dx: bool
    goes_back: bool

    def forward(self) -> Cost:
        """Of the forward pass."""
        return self.problem.forward()

    def backward(self) -> Cost:
        """Of what the backward pass must compute here."""
        M, K, N, r, dtype, adapter_dtype = self.problem
        if not self.goes_back:
            return Cost(0, 0)
        if self.needs_dx and r:
            return self.problem.backward()
        if self.needs_dx:
            return Cost(2 * M * N * K, dtype.itemsize * (M * N + N * K + M * K))
        # dB, q and dA: dy, x, B and p are read.
        small = adapter_dtype.itemsize * r * (K + 2 * N) + 4 * M * r
        return Cost(2 * M * r * (K + 2 * N), dtype.itemsize * (M * N + M * K) + small)


def linear_uses(task: Task) -> list[Use]:
    """Every call of a linear layer in one forward pass of the task's net with LoRA, seen by hooks."""
    model = task.build()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sizes = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    tuned = UNFUSED.tune(model, task.names, task.update)
    uses: list[Use] = []

    def watch(name: str, layer: nn.Module) -> None:
        K, N = sizes[name]
        r = task.update.r if name in task.names else 0

        def seen(_: nn.Module, inputs: Any) -> None:
            (x,) = inputs
            problem = Problem(x.numel() // K, K, N, r, task.dtype, task.update.adapter_dtype)
            uses.append(Use(problem, x.requires_grad, x.requires_grad or r > 0))

        layer.register_forward_pre_hook(seen)

    for name in sizes:
        watch(name, tuned.model.get_submodule(name))
    with torch.enable_grad():
        task.run(tuned.model, task.batches[0])
    return uses


def step_floors(uses: Iterable[Use], ceilings: Ceilings) -> dict[str, Floor]:
    """Of "forward", "backward" and "step", which is both."""
    uses = list(uses)
    there, back = [use.forward() for use in uses], [use.backward() for use in uses]
    passes = {"forward": there, "backward": back, "step": there + back}
    return {part: floor_of(costs, ceilings) for part, costs in passes.items()}
