"""The least time that a LoRA layer's pass can take at the measured ceilings.

One floor for every method of a case, also for those that do another job (a frozen layer does a little less,
full fine-tuning a half more): time over the floor then compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bench.cases import Case
from bench.ceilings import Ceilings
from fastlora.cost import Cost, Problem


class Floor(NamedTuple):
    """The least time of some passes one after the other, and what it is made of.

    Attributes:
        us: Microseconds at the ceilings; passes cannot overlap, so they add up.
        flops: Floating-point operations.
        moved_bytes: Each operand read or written once.
    """

    us: float
    flops: int
    moved_bytes: int


def floor_of(passes: Iterable[Cost], ceilings: Ceilings) -> Floor:
    """The floor of passes that follow each other."""
    passes = list(passes)
    rates = (ceilings.matmul_flops, ceilings.copy_bytes_per_s)
    return Floor(
        sum(cost.floor_us(*rates) for cost in passes),
        sum(cost.flops for cost in passes),
        sum(cost.moved for cost in passes),
    )


def case_floor(case: Case, phase: str, ceilings: Ceilings) -> Floor:
    """The floor of one phase of a case.

    Raises:
        ValueError: If the phase is unknown.
    """
    problem = Problem(*case[:6])
    there, back = problem.forward(), problem.backward()
    passes = {"forward": [there], "backward": [back], "forward+backward": [there, back]}
    if phase not in passes:
        raise ValueError(f"phase must be one of {', '.join(passes)}; got {phase!r}")
    return floor_of(passes[phase], ceilings)
