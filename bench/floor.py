"""The least time that a LoRA layer's pass can take at the measured ceilings.

One floor for every method of a case, also for those that do another job (a frozen layer does a little less,
full fine-tuning a half more): time over the floor then compares them.
"""

from __future__ import annotations

from bench.cases import Case
from bench.ceilings import Ceilings
from fastlora.cost import Problem


def floor_us(case: Case, phase: str, ceilings: Ceilings) -> float:
    """Microseconds at the ceilings; the two passes of "forward+backward" cannot overlap, so they add up.

    Raises:
        ValueError: If the phase is unknown.
    """
    problem = Problem(*case[:6])
    rates = (ceilings.matmul_flops, ceilings.copy_bytes_per_s)
    there, back = (cost.floor_us(*rates) for cost in (problem.forward(), problem.backward()))
    floors = {"forward": there, "backward": back, "forward+backward": there + back}
    if phase not in floors:
        raise ValueError(f"phase must be one of {', '.join(floors)}; got {phase!r}")
    return floors[phase]
