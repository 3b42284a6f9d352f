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

from bench.cases import Case
from bench.methods import UNFUSED
from bench.settings import Effort
from bench.task import Task
from fastlora.arguments import dtype_name
from fastlora.experts.stacks import stacks_of
from fastlora.formula.cost import Cost, Problem
from fastlora.measuring.timing import WHOLE, Work, interleaved, quartiles, timer_for, warm_up

_PRODUCT_SECONDS = 0.25


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
    device = how.device
    size = affordable_size(how.matmul_size, dtype, device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(how.copy_bytes // 4, device=device)
    target, product = torch.empty_like(source), torch.empty_like(left)
    works = {
        "matmul": Work.of(lambda: torch.mm(left, right, out=product)),
        "copy": Work.of(lambda: target.copy_(source)),
    }
    timer = timer_for(device)
    warm_up(works, how.warm_up_rounds, timer)
    times = interleaved(works, how.rounds, timer)
    matmul, copy = (1e-6 * quartiles(times[name][WHOLE]).median for name in works)
    return Ceilings(2 * size**3 / matmul, dtype_name(dtype), size, 2 * source.nbytes / copy, source.nbytes)


def affordable_size(size: int, dtype: torch.dtype, device: torch.device) -> int:
    """The size, halved until a product takes at most a quarter of a second.

    A CPU without units for a 16-bit dtype multiplies it a thousand times slower than fp32.
    """
    probe = min(size, 256)
    small = torch.ones(probe, probe, device=device, dtype=dtype)
    timer = timer_for(device)
    work = {"probe": Work.of(lambda: torch.mm(small, small))}
    warm_up(work, 2, timer)
    seconds = 1e-6 * min(interleaved(work, 3, timer)["probe"][WHOLE])
    while size > probe and seconds * (size / probe) ** 3 > _PRODUCT_SECONDS:
        size //= 2
    return size


class Floor(NamedTuple):
    """The least time in microseconds of passes that follow each other, and what it is made of."""

    floor_us: float
    flops: int
    moved_bytes: int


class Use(NamedTuple):
    """One call of a linear layer: r = 0 where it has no update; the first layer of a net needs no dx."""

    problem: Problem
    needs_dx: bool = True
    goes_back: bool = True

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


def layer_use(case: Case) -> list[Use]:
    """A layer alone."""
    return [Use(Problem(*case[:6]))]


def net_uses(task: Task) -> list[Use]:
    """Every call of a linear layer in one forward pass of the task's net with LoRA, seen by hooks.

    An expert with tokens is one, with so many rows.
    """
    model = task.build()
    sizes = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    experts = {
        name: [stack.weight.shape for stack in stacks]
        for name, module in model.named_modules()
        if (stacks := stacks_of(module))
    }
    tuned = (task.reference or UNFUSED).tune(model, task.names, task.update)
    uses: list[Use] = []

    def seen(name: str, _: nn.Module, inputs: Any) -> None:
        (x,), (K, N) = inputs, sizes[name]
        r = task.update.r if name in task.names else 0
        problem = Problem(x.numel() // K, K, N, r, task.dtype, task.update.adapter_dtype)
        uses.append(Use(problem, x.requires_grad, x.requires_grad or r > 0))

    def experts_seen(shapes: Sequence[torch.Size], _: nn.Module, inputs: Any) -> None:
        _, index, _ = inputs
        for E, N, K in shapes:
            for m in filter(None, torch.bincount(index.flatten(), minlength=E).tolist()):
                uses.append(Use(Problem(m, K, N, task.update.r, task.dtype, task.update.adapter_dtype)))

    for name in sizes:
        tuned.model.get_submodule(name).register_forward_pre_hook(functools.partial(seen, name))
    for name, shapes in experts.items():
        tuned.model.get_submodule(name).register_forward_pre_hook(functools.partial(experts_seen, shapes))
    task.run(tuned.model, task.batches[0])
    return uses


def floors(uses: Iterable[Use], ceilings: Ceilings) -> dict[str, Floor]:
    """Of each phase and of the whole, by name."""
    uses = list(uses)
    there, back = [use.problem.forward() for use in uses], [use.backward() for use in uses]
    both = there + back
    passes = {"forward": there, "backward": back, "forward+backward": both, WHOLE: both}
    rates = (ceilings.matmul_flops, ceilings.copy_bytes_per_s)
    return {
        phase: Floor(
            round(sum(cost.floor_us(*rates) for cost in costs), 6),
            sum(cost.flops for cost in costs),
            sum(cost.moved for cost in costs),
        )
        for phase, costs in passes.items()
    }
