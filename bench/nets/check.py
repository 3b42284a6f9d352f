"""Before a tuner is timed: are its net's logits and gradients right?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.check import Check
from bench.nets.modes import Dress, as_it_is
from bench.nets.task import Batch, Task
from bench.nets.tuner import Tuned, Tuner, Update
from bench.nets.unfused import UNFUSED
from tests.testing import assert_within_budget, relative_error


def check_tuner(tuner: Tuner, task: Task, dress: Dress) -> Check:
    """Hold logits and gradients of the first batch to fp64.

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
    ours = _results(tuner, task.build(), task, task.update, dress)
    torchs = _results(plain, task.build(), task, task.update)
    truth = _results(plain, task.build().double(), task, wide)
    measured = {name: relative_error(ours[name], truth[name]) for name in truth}
    errors = {name: error if math.isfinite(error) else None for name, error in measured.items()}
    try:
        for name in truth:
            assert_within_budget(name, ours[name], torchs[name], truth[name])
    except AssertionError as failure:
        return Check(tuner.name, errors, str(failure))
    return Check(tuner.name, errors, None)


def _results(
    tuner: Tuner, model: nn.Module, task: Task, update: Update, dress: Dress = as_it_is
) -> dict[str, Tensor]:
    """The logits, and the gradients end to end: dA and dB, or dW where all weights are trained."""
    tuned = tuner.tune(model, task.names, update)
    if tuner.adapts:
        draw_update(tuned, task.update.adapter_dtype)
    dtype = next(model.parameters()).dtype
    outcome = task.run(dress(tuned.model), _converted(task.batches[0], dtype))
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    results = {"logits": outcome.logits.detach()}
    kinds = {"dA": ".A", "dB": ".B"} if tuner.adapts else {"dW": ""}
    for kind, ending in kinds.items():
        gradients = [
            tensor.grad.flatten()
            for name, tensor in tuned.trained.items()
            if name.endswith(ending) and tensor.grad is not None
        ]
        if gradients:
            results[kind] = torch.cat(gradients)
    return results


def draw_update(tuned: Tuned, dtype: torch.dtype) -> None:
    """Fill A and B from one seed with values of `dtype`, whatever they are held in."""
    generator = torch.Generator().manual_seed(20261122)
    with torch.no_grad():
        for tensor in tuned.trained.values():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_((drawn / tensor.shape[1] ** 0.5).to(dtype))


def _converted(batch: Batch, dtype: torch.dtype) -> Mapping[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
