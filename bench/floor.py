"""The least time that a LoRA layer's pass can take: its arithmetic or its bytes, whichever takes longer.

One floor for every method of a case, also for those that do another job (a frozen layer does a little less,
full fine-tuning a half more): time over the floor then compares them.
"""

from __future__ import annotations

from bench.cases import Case
from bench.ceilings import Ceilings

# p, handed from the forward to the backward pass, is fp32.
_P_BYTES = 4


def forward_flops(case: Case) -> int:
    """Of x Wᵀ, x Aᵀ and p Bᵀ."""
    M, K, N, r = case[:4]
    return 2 * M * (N * K + r * (K + N))


def backward_flops(case: Case) -> int:
    """Of dy W, dy B and q A for dx, dyᵀ p for dB, qᵀ x for dA."""
    M, K, N, r = case[:4]
    return 2 * M * (N * K + 2 * r * (K + N))


def forward_bytes(case: Case) -> int:
    """X, W, A and B read once, y and p written once."""
    M, K, N, r = case[:4]
    return case.base_bytes + case.adapter_dtype.itemsize * r * (K + N) + _P_BYTES * M * r


def backward_bytes(case: Case) -> int:
    """Dy, x, W, A, B and p read once, dx, dA and dB written once."""
    M, K, N, r = case[:4]
    adapters_and_gradients = 2 * case.adapter_dtype.itemsize * r * (K + N)
    return case.base_bytes + case.dtype.itemsize * M * K + adapters_and_gradients + _P_BYTES * M * r


def floor_us(case: Case, phase: str, ceilings: Ceilings) -> float:
    """Microseconds at the ceilings; the two passes of "forward+backward" cannot overlap, so they add up.

    Raises:
        ValueError: If the phase is unknown.
    """
    there = _longer(forward_flops(case), forward_bytes(case), ceilings)
    if phase == "forward":
        return there
    if phase == "forward+backward":
        return there + _longer(backward_flops(case), backward_bytes(case), ceilings)
    raise ValueError(f"phase must be 'forward' or 'forward+backward'; got {phase!r}")


def _longer(flops: int, moved: int, ceilings: Ceilings) -> float:
    return 1e6 * max(flops / ceilings.matmul_flops, moved / ceilings.copy_bytes_per_s)
