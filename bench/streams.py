"""Several layers at once, each on a stream of its own: their launches share nothing but the GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.bits import Differences, one_run, report
from bench.methods import Layer
from tests.testing import Operands


def at_once(
    names: Sequence[str], layers: Sequence[Layer], sets: Sequence[Operands], runs: int, seconds: float
) -> dict[str, Any]:
    """Compare what each layer gives among the others with what it gives alone.

    In each run all forward passes are queued, then all backward passes, a stream a layer, and nothing waits
    for another stream. On a CPU, which has no streams, the same calls run in the same order.

    Args:
        names: Of y and of the gradients in the order of the layers'.
        layers: What is run.
        sets: Their operands.
        runs: How many at most.
        seconds: No run starts later than this after the first.

    Returns:
        A correctness step's result.
    """
    device = sets[0].x.device
    alone = [Differences(names, one_run(layer, ops)) for layer, ops in zip(layers, sets, strict=True)]
    on_stream = _streams(len(layers), device)
    start = time.monotonic()
    done = 0
    while done < runs and time.monotonic() - start < seconds:
        outputs: list[Tensor] = []
        for stream, layer, ops in zip(on_stream, layers, sets, strict=True):
            with stream:
                outputs.append(layer.apply(ops.x))
        for stream, layer, ops, y, differences in zip(on_stream, layers, sets, outputs, alone, strict=True):
            with stream:
                gradients = torch.autograd.grad(y, (ops.x, *layer.trained), ops.dy)
                differences.add([y, *gradients])
        done += 1
    _wait(device)
    counts = {
        f"{name} of layer {number}": count
        for number, differences in enumerate(alone)
        for name, count in differences.counts().items()
    }
    what = f"runs of {len(layers)} layers at once, forward and backward"
    return report(counts, done, what, time.monotonic() - start)


def _streams(count: int, device: torch.device) -> list[contextlib.AbstractContextManager[object]]:
    """Contexts whose work goes to a stream of its own, behind what has been queued so far."""
    if device.type != "cuda":
        return [contextlib.nullcontext() for _ in range(count)]
    _wait(device)
    return [torch.cuda.stream(torch.cuda.Stream(device)) for _ in range(count)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
