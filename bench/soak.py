"""Runs compared bit for bit, in three ways: a race shows as a difference.

repeat   one case over and over
graph    one case as a CUDA graph, replayed over and over, against an eager run
streams  several cases on a stream each, at once, against each one alone
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.counts import synchronize
from bench.layer import Layer, build_layer
from bench.methods import FASTLORA
from bench.process import not_run, outcome
from bench.settings import Setting
from fastlora.measuring.timing import captured

NAMES = ("y", "dx", "dA", "dB")

# The results of one layer after the other; what is done with each happens on the stream it was made on.
Run = Callable[[], Iterator[Sequence[Tensor]]]


def compare(
    first: Sequence[Sequence[Tensor]], run: Run, most_runs: int, seconds: float, what: str
) -> dict[str, Any]:
    """Hold runs to the bits of the first results: NaN equals itself, 0 does not equal -0.

    The comparison is queued behind the run and read once at the end: the host waits for nothing in between,
    so that runs follow one another as closely as they can. No run starts after so many seconds; a soak of
    none has not passed.
    """
    kept = [[_bits(result).clone() for result in results] for results in first]
    counts = [torch.zeros(len(NAMES), dtype=torch.int64, device=results[0].device) for results in kept]
    synchronize(counts[0].device)
    start, runs = time.monotonic(), 0
    while runs < most_runs and time.monotonic() - start < seconds:
        for own, count, results in zip(kept, counts, run(), strict=True):
            count += torch.stack([(a != _bits(b)).any() for a, b in zip(own, results, strict=True)])
        runs += 1
    synchronize(counts[0].device)
    different = {
        name if len(counts) == 1 else f"{name} of layer {number}": int(value)
        for number, count in enumerate(counts)
        for name, value in zip(NAMES, count, strict=True)
    }
    wrong = any(different.values())
    summary = f"{runs} {what}, {f'different: {different}' if wrong else 'all bitwise equal'}"
    return outcome(runs > 0 and not wrong, summary, runs=runs, different=different)


def replay(layer: Layer, runs: int, seconds: float) -> dict[str, Any]:
    """A layer captured as a CUDA graph, forward and backward, against an eager run.

    Before each replay the results' own memory is filled with NaN from outside the graph; under `poisoned` the
    graph itself also fills every buffer that is allocated in it.
    """
    if layer.x.device.type != "cuda":
        return not_run("CUDA graphs need a GPU, a CPU has nothing like them")
    first, results = layer.forward_backward(), list[Tensor]()

    def once() -> None:
        results[:] = layer.forward_backward()

    again = captured(once)

    def run() -> Iterator[Sequence[Tensor]]:
        for result in results:
            result.fill_(torch.nan)
        again()
        yield results

    return compare([first], run, runs, seconds, "replays of forward and backward")


def at_once(layers: Sequence[Layer], runs: int, seconds: float) -> dict[str, Any]:
    """What each layer gives among the others, each on a stream of its own, against what it gives alone.

    All forward passes are queued, then all backward passes, and nothing waits for another stream. On a CPU,
    which has no streams, the same calls run in the same order. One layer is run over and over.
    """
    device = layers[0].x.device
    alone = [layer.forward_backward() for layer in layers]
    streams: list[Any] = [contextlib.nullcontext()] * len(layers)
    if device.type == "cuda":
        torch.cuda.synchronize()
        streams = [torch.cuda.stream(torch.cuda.Stream(device)) for _ in layers]

    def run() -> Iterator[Sequence[Tensor]]:
        outputs = []
        for stream, layer in zip(streams, layers, strict=True):
            with stream:
                outputs.append(layer.forward())
        for stream, layer, y in zip(streams, layers, outputs, strict=True):
            with stream:
                yield [y.detach(), *layer.backward(y)]

    several = f"{len(layers)} layers at once, " if len(layers) > 1 else ""
    return compare(alone, run, runs, seconds, f"runs of {several}forward and backward")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch.empty returns with NaN.

    Otherwise a program that reads p or q too early would find the last run's values there, which are right.
    In a CUDA graph the fills are captured, so that each replay finds NaN in every output and scratch buffer.
    """
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _bits(result: Tensor) -> Tensor:
    return result.detach().contiguous().view(torch.uint8)


def soak(setting: Setting, how: str) -> dict[str, Any]:
    """One of the three on a setting's cases."""
    torch.manual_seed(0)
    cases = setting.streams if how == "streams" else (setting.soak,)
    limits = (setting.soak_runs, setting.seconds["soak"])
    with poisoned():
        layers = [build_layer(FASTLORA, case, case.inputs(setting.device)) for case in cases]
        found = replay(layers[0], *limits) if how == "graph" else at_once(layers, *limits)
    return {"cases": [case.labels() for case in cases], **found}
