"""What the device reaches at best, measured in the same run, and the least time of linear layers at that.

One floor for every method, also for those that do another job (a frozen layer does a little less, full
fine-tuning a half more): time over the floor then compares them. What lies between a net's linear layers
(norms, attention, activations, the loss) is not counted, so that no net reaches it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.layer import WHOLE_PASS
from bench.results import Results
from bench.schedule import FAST_ON_CPU
from bench.settings import Effort
from bench.task import Task
from fastlora.arguments import dtype_name
from fastlora.experts.stacks import stacks_of
from fastlora.formula.cost import Cost, Problem
from fastlora.measuring.timing import WHOLE, Work, quartiles

# A CPU without units for a 16-bit dtype multiplies it a thousand times slower than fp32.
_SLOW_SIZE = 256


class Ceilings(NamedTuple):
    """FLOP/s of a large square product in a dtype; bytes read and written a second by a large copy."""

    matmul_flops: float
    matmul_dtype: str
    matmul_size: int
    copy_bytes_per_s: float
    copy_bytes: int

    def __str__(self) -> str:
        product = f"{self.matmul_dtype} product of {self.matmul_size} x {self.matmul_size}"
        copy = f"copy of {self.copy_bytes / 1e6:.0f} MB"
        return (
            f"{self.matmul_flops / 1e12:.4g} TFLOP/s ({product}), "
            f"{self.copy_bytes_per_s / 1e9:.4g} GB/s ({copy}, bytes read and written)"
        )


def measure_ceilings(how: Effort, dtype: torch.dtype) -> Ceilings:
    """Time the library's product of random matrices in a dtype and a copy, medians of several."""
    device, size = how.device, how.matmul_size
    if device.type == "cpu" and dtype.itemsize == 2 and dtype != FAST_ON_CPU:
        size = min(size, _SLOW_SIZE)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(how.copy_bytes // 4, device=device)
    target, product = torch.empty_like(source), torch.empty_like(left)
    works = {
        "matmul": Work.of(lambda: torch.mm(left, right, out=product)),
        "copy": Work.of(lambda: target.copy_(source)),
    }
    times = how.times(works)
    matmul, copy = (1e-6 * quartiles(times[name][WHOLE]).median for name in works)
    return Ceilings(2 * size**3 / matmul, dtype_name(dtype), size, 2 * source.nbytes / copy, source.nbytes)


def keep_ceilings(
    results: Results, how: Effort, dtypes: Sequence[torch.dtype]
) -> dict[torch.dtype, Ceilings]:
    """The ceilings of each dtype, which are measured unless the results have them."""
    if results.ceilings is None:
        found = [measure_ceilings(how, dtype)._asdict() for dtype in dict.fromkeys(dtypes)]
        results.ceilings, *results.other_ceilings = found
    known = {dtype: results.ceilings_of(dtype_name(dtype)) for dtype in dtypes}
    return {dtype: Ceilings(**found) for dtype, found in known.items() if found is not None}


class Floor(NamedTuple):
    """The least time in microseconds of passes that follow each other, and what it is made of."""

    floor_us: float
    flops: int
    moved_bytes: int


class Use(NamedTuple):
    """One call of a linear layer: r = 0 where it has no update; the first layer of a net needs no dx."""

    problem: Problem
    needs_dx: bool = True


def net_uses(task: Task) -> list[Use]:
    """Every call of a linear layer in one forward pass of the task's net with LoRA, seen by hooks.

    An expert with tokens is one, with so many rows. The weights that LoRA adapts stand for it: gradients run
    back through the same layers.
    """
    model = task.build().requires_grad_(False)
    uses: list[Use] = []

    def problem(M: int, K: int, N: int, r: int) -> Problem:
        return Problem(M, K, N, r, task.dtype, task.update.adapter_dtype)

    def linear(r: int, layer: Any, inputs: Any) -> None:
        (x,), K, N = inputs, layer.in_features, layer.out_features
        uses.append(Use(problem(x.numel() // K, K, N, r), x.requires_grad))

    def experts(r: int, layer: nn.Module, inputs: Any) -> None:
        _, index, _ = inputs
        for E, N, K in (stack.weight.shape for stack in stacks_of(layer)):
            for m in filter(None, torch.bincount(index.flatten(), minlength=E).tolist()):
                uses.append(Use(problem(m, K, N, r)))

    for name, module in model.named_modules():
        is_adapted, is_linear = name in task.names, isinstance(module, nn.Linear)
        if is_adapted:
            module.requires_grad_()
        if is_linear or stacks_of(module):
            hook = functools.partial(linear if is_linear else experts, task.update.r if is_adapted else 0)
            module.register_forward_pre_hook(hook)
    task.run(model, task.batches[0])
    return uses


def floors(uses: Iterable[Use], ceilings: Ceilings) -> dict[str, Floor]:
    """Of each phase and of the whole, by name."""
    uses = list(uses)
    there = [use.problem.forward() for use in uses]
    back = [use.problem.backward(needs_dx=use.needs_dx) for use in uses]
    passes = {"forward": there, "backward": back, WHOLE_PASS: there + back, WHOLE: there + back}
    rates = (ceilings.matmul_flops, ceilings.copy_bytes_per_s)

    def floor(costs: list[Cost]) -> Floor:
        flops, moved = (sum(counts) for counts in zip(*costs, strict=True))
        return Floor(round(sum(cost.floor_us(*rates) for cost in costs), 6), flops, moved)

    return {phase: floor(costs) for phase, costs in passes.items()}
