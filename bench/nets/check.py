"""Before a tuner is timed: are its net's logits and gradients right?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from bench.check import Check
from bench.nets.modes import Dress, as_it_is
from bench.nets.task import Batch, Task
from bench.nets.tuner import Tuned, Tuner, Update
from bench.nets.unfused import UNFUSED
from tests.testing import relative_error

# A rounding in a first layer runs through all others, so that one batch's error is a matter of luck.
_MOST_BATCHES: Final = 4


def check_tuner(tuner: Tuner, task: Task, dress: Dress = as_it_is) -> Check:
    """Hold logits and gradients to fp64, the worst of several batches.

    The truth is the same net in fp64 with separate torch operations, and the budget the tests': twice the
    error of those operations in the task's own dtypes, and one rounding. A and B are random, B not zero, and
    the same in all. Gradients of one kind are taken together: a net has hundreds, and the largest of hundreds
    of errors says little about a method.

    Args:
        tuner: What to check.
        task: Dropout must be 0: each library draws a mask of its own.
        dress: The mode that it is timed in.
    """
    plain = UNFUSED if tuner.adapts else tuner
    wide = task.update._replace(adapter_dtype=torch.float64)
    truth = _results(plain, task.build().double(), task, wide)
    ours = _worst(_results(tuner, task.build(), task, task.update, dress), truth)
    torchs = _worst(_results(plain, task.build(), task, task.update), truth)
    eps = torch.finfo(task.dtype).eps
    failures = [
        f"{name}: error {error:.2e} exceeds the budget {2 * torchs[name] + eps:.2e}"
        for name, error in ours.items()
        if not error <= 2 * torchs[name] + eps
    ]
    errors = {name: error if math.isfinite(error) else None for name, error in ours.items()}
    return Check(tuner.name, errors, failures[0] if failures else None)


def _worst(results: list[dict[str, Tensor]], truth: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of each kind of result the largest relative error of all batches."""
    return {
        name: max(relative_error(ours[name], true[name]) for ours, true in zip(results, truth, strict=True))
        for name in truth[0]
    }


def _results(
    tuner: Tuner, model: nn.Module, task: Task, update: Update, dress: Dress = as_it_is
) -> list[dict[str, Tensor]]:
    """For each batch the logits, and the gradients end to end: dA and dB, or dW where all is trained."""
    tuned = tuner.tune(model, task.names, update)
    if tuner.adapts:
        draw_update(tuned, task.update.adapter_dtype)
    dtype, dressed = next(model.parameters()).dtype, dress(tuned.model)
    results = []
    for batch in task.batches[:_MOST_BATCHES]:
        outcome = task.run(dressed, _converted(batch, dtype))
        outcome.loss.backward()
        results.append({"logits": outcome.logits.detach(), **_gradients(tuned, tuner.adapts)})
        dressed.zero_grad()
    return results


def _gradients(tuned: Tuned, adapts: bool) -> dict[str, Tensor]:
    kinds = {"dA": ".A", "dB": ".B"} if adapts else {"dW": ""}
    gradients = {
        kind: [
            tensor.grad.flatten()
            for name, tensor in tuned.trained.items()
            if name.endswith(ending) and tensor.grad is not None
        ]
        for kind, ending in kinds.items()
    }
    return {kind: torch.cat(tensors) for kind, tensors in gradients.items() if tensors}


def draw_update(tuned: Tuned, dtype: torch.dtype) -> None:
    """Fill A and B from one seed with values of `dtype`, whatever they are held in."""
    generator = torch.Generator().manual_seed(20261122)
    with torch.no_grad():
        for tensor in tuned.trained.values():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_((drawn / tensor.shape[1] ** 0.5).to(dtype))


def _converted(batch: Batch, dtype: torch.dtype) -> Mapping[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
