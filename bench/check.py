"""Before a method is timed: is what it computes right, on the very net and batches that it is timed on?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from bench.methods import UNFUSED, Method
from bench.methods.by_hand import masked
from bench.methods.method import Tuned, Update, bare
from bench.step import MODES
from bench.task import Batch, Task, as_files_do, draw_update
from fastlora.formula.masks import dropout_constants
from fastlora.measuring.errors import budget_of, relative_error
from fastlora.seeding import seed_all

# Ahead of each pass: always the same mask.
SEED: Final = 20251001

# The share that is dropped may miss the rate by so many standard deviations of that many fair draws.
_DEVIATIONS: Final = 5

# A rounding in a first layer runs through all others, so that one batch's error is a matter of luck.
_MOST_BATCHES: Final = 4


class Check(NamedTuple):
    """Errors against fp64 of y and each gradient, None where not finite; what is wrong, if anything."""

    method: str
    errors: dict[str, float | None]
    failure: str | None


def check(method: Method, task: Task, mode: str = "eager") -> Check:
    """Hold y and the gradients to fp64, the worst of several batches.

    The truth is the same net in fp64 with separate torch operations, the budget the tests': twice the error
    of those operations and one rounding, all in the net's dtype, also where adapters are wider: a method that
    rounds those is not wrong, and its error is on record beside the others'. A and B are random, B not zero.
    With dropout the formula gets the very mask that the method drew. Gradients of one kind are taken
    together: a net has hundreds, and the largest of hundreds of errors says little.
    """
    plain = (task.reference or UNFUSED) if method.trains == "AB" else method
    if task.update.dropout and method.drops:
        try:
            plain = replace(UNFUSED, tune=bare(masked(read_mask(method, task))))
        except AssertionError as refused:
            return Check(method.name, {}, str(refused))
    undropped = task.update if plain is method else task.update._replace(dropout=0.0)
    truth = _results(plain, task, undropped._replace(adapter_dtype=torch.float64), torch.float64)
    torchs = _results(plain, task, undropped._replace(adapter_dtype=task.dtype), task.dtype)
    ours = _results(method, task, task.update, task.dtype, mode)
    errors: dict[str, float | None] = {}
    failure = None
    for name in truth[0]:
        error = max(relative_error(own[name], true[name]) for own, true in zip(ours, truth, strict=True))
        dtype = ours[0][name].dtype
        budget = max(budget_of(own[name], true[name], dtype) for own, true in zip(torchs, truth, strict=True))
        errors[name] = error if math.isfinite(error) else None
        if failure is None and not error <= budget < math.inf:
            failure = f"{name}: error {error:.2e} exceeds the budget {budget:.2e}"
    return Check(method.name, errors, failure)


def _results(
    method: Method, task: Task, update: Update, dtype: torch.dtype, mode: str = "eager"
) -> list[dict[str, Tensor]]:
    """For each batch y, the gradient of x where it takes one, and those of what is trained, end to end."""
    # What they are held to runs on plain layers, which can be in fp64.
    build = task.plain if method.name == UNFUSED.name and task.plain is not None else task.build
    tuned = method.tune(build().to(dtype), task.names, update)
    draw_update(tuned, task.update.adapter_dtype)
    model, results = MODES[mode](tuned.model), []
    for batch in task.batches[:_MOST_BATCHES]:
        batch = _converted(batch, dtype)
        seed_all(SEED)
        outcome = task.run(model, batch)
        outcome.loss.backward()
        dx = {f"d{name}": tensor.grad for name, tensor in batch.items() if tensor.grad is not None}
        results.append({"y": outcome.y.detach(), **dx, **_gradients(tuned)})
        model.zero_grad()
    return results


def _gradients(tuned: Tuned) -> dict[str, Tensor]:
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in tuned.trained.items():
        letter = name[-1] if name.endswith((".A", ".B")) else "W"
        if tensor.grad is not None:
            kinds.setdefault(f"d{letter}", []).append(as_files_do(name, tensor.grad).flatten())
    return {kind: torch.cat(tensors) for kind, tensors in kinds.items()}


def _converted(batch: Batch, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Copies whose gradients are their own."""
    return {
        name: value.detach().to(dtype, copy=True).requires_grad_(value.requires_grad)
        if value.is_floating_point()
        else value
        for name, value in batch.items()
    }


def read_mask(method: Method, task: Task) -> Tensor:
    """The D [M, K] in fp64 that a method draws in a layer alone, read back through the method itself.

    It is dx where W is 0 and q A is 1 everywhere: the first rank's row of A is 1, that of Bᵀ is 1 / s in the
    first column of y, the others are 0, and dy is 1.

    Raises:
        AssertionError: If the share of dropped entries is not the rate.
    """
    (batch,) = task.batches
    model = task.build()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)  # not in place: the memory is the inputs'
    tuned = method.tune(model, task.names, task.update)
    A, B = tuned.trained.values()
    with torch.no_grad():
        A.zero_()[0] = 1
        B.zero_()[0, 0] = task.update.r / task.update.alpha
    x = torch.ones_like(batch["x"], requires_grad=True)
    seed_all(SEED)
    (dx,) = torch.autograd.grad(task.run(tuned.model, {"x": x, "dy": torch.ones_like(batch["dy"])}).loss, x)
    kept, rate = dx > 0.5, task.update.dropout  # kept entries are at least 1
    dropped = 1 - kept.double().mean().item()
    bound = _DEVIATIONS * math.sqrt(rate * (1 - rate) / kept.numel())
    if not abs(dropped - rate) <= bound:
        raise AssertionError(f"dropout: {dropped:.4f} of the entries, not {rate:g}")
    # A rate may be rounded to a multiple of 2^-16, as ours is; its scale then is the rounded one's.
    found = dx[kept].double().mean().item()
    scale = min((1 / (1 - rate), dropout_constants(rate)[1]), key=lambda one: abs(one - found))
    return kept.double() * scale
