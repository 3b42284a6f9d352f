"""One case captured as a CUDA graph, forward and backward, and replayed over and over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.bits import Differences, one_run, report
from bench.methods import Layer
from bench.timing import captured
from tests.testing import Operands


def replay(names: Sequence[str], layer: Layer, ops: Operands, runs: int, seconds: float) -> dict[str, Any]:
    """Compare the results of replays with those of an eager run.

    Before each replay the results' own memory is filled with NaN from outside the graph; under
    `bits.poisoned` the graph itself also fills every buffer that is allocated in it.

    Args:
        names: Of y and of the gradients in the order of the layer's.
        layer: What is captured.
        ops: Its operands, on a GPU; on a CPU there is nothing to capture.
        runs: How many replays at most.
        seconds: No replay starts later than this after the first.

    Returns:
        A correctness step's result.
    """
    if ops.x.device.type != "cuda":
        why = "not run: CUDA graphs need a GPU, a CPU has nothing like them"
        return {"passed": None, "finished": True, "summary": why, "seconds": 0.0}
    differences = Differences(names, one_run(layer, ops))
    results: list[Tensor] = []

    def run() -> None:
        results[:] = one_run(layer, ops)

    run_again = captured(run)
    start = time.monotonic()
    while differences.runs < runs and time.monotonic() - start < seconds:
        for result in results:
            result.fill_(torch.nan)
        run_again()
        differences.add(results)
    counts = differences.counts()
    return report(counts, differences.runs, "replays of forward and backward", time.monotonic() - start)
