"""Whether runs give the same bits as the first one, counted on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.methods import Layer
from bench.phases import forward_backward
from tests.testing import Operands


class Differences:
    """Counts the runs in which a result differs from the first run's.

    The comparison is queued behind the run and read once at the end: the host waits for nothing in between,
    so that runs follow one another as closely as they can.

    Args:
        names: Of the results.
        first: The first run's.
    """

    def __init__(self, names: Sequence[str], first: Sequence[Tensor]) -> None:
        self.names = tuple(names)
        self._first = [_bits(result).clone() for result in first]
        self._counts = torch.zeros(len(names), dtype=torch.int64, device=first[0].device)
        self.runs = 0

    def add(self, results: Sequence[Tensor]) -> None:
        """Compare one more run."""
        pairs = zip(self._first, results, strict=True)
        self._counts += torch.stack([(one != _bits(other)).any() for one, other in pairs])
        self.runs += 1

    def counts(self) -> dict[str, int]:
        """In how many runs each result differed; waits for the device."""
        return dict(zip(self.names, self._counts.tolist(), strict=True))


def one_run(layer: Layer, ops: Operands) -> list[Tensor]:
    """Y and the gradients, without their autograd graph.

    While that lives, so do the nodes that stand for x, A and B in it, and they hold on to the stream that
    they were made on: a capture, or a run on another stream, would have to wait for that one.
    """
    y, gradients = forward_backward(layer, ops)
    return [y.detach(), *gradients]


def report(counts: dict[str, int], runs: int, of_what: str, seconds: float) -> dict[str, Any]:
    """A correctness step's result.

    Args:
        counts: In how many runs each result differed.
        runs: How many there were; none have not passed.
        of_what: The runs in words, such as "runs of forward and backward".
        seconds: How long it took.
    """
    passed = runs > 0 and not any(counts.values())
    found = "all bitwise equal" if passed else f"different: {counts}"
    return {
        "passed": passed,
        "finished": True,
        "summary": f"{runs} {of_what}, {found}",
        "runs": runs,
        "different": counts,
        "seconds": round(seconds, 1),
    }


@contextmanager
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
    """As bytes: NaN equals itself, 0 does not equal -0."""
    return result.detach().contiguous().view(torch.uint8)
