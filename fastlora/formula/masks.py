"""LoRA dropout: the rate that is applied, and the mask that the torch path draws from a seed.

Torch path and kernels round the rate to a multiple of 2^-16. Kept entries are scaled by 1 / (1 - rounded
rate), so the expectation is exact.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_STEPS: Final = 2**16


def dropout_constants(dropout: float) -> tuple[int, float]:
    """(threshold, scale): an entry is kept if its 16 random bits reach the threshold, and is then scaled.

    Args:
        dropout: Probability of dropping an entry, in [0, 1).
    """
    threshold = min(round(dropout * _STEPS), _STEPS - 1)
    return threshold, _STEPS / (_STEPS - threshold)


def draw_mask(like: Tensor, threshold: int, seed: Tensor | None) -> Tensor:
    """A mask, 1 where an entry is kept and 0 where it is dropped; seed, device and shape determine it.

    Args:
        like: [M, K]; the mask has its shape, dtype and device.
        threshold: As `dropout_constants` gives it.
        seed: [1] int64.

    Raises:
        ValueError: If `seed` is None.
    """
    if seed is None:
        raise ValueError("seed must be a [1] int64 tensor where dropout > 0; got None")
    generator = torch.Generator(like.device).manual_seed(int(seed.item()))
    mask = torch.empty_like(like, memory_format=torch.contiguous_format)
    if not like.is_cpu:
        return mask.bernoulli_(1 - threshold / _STEPS, generator=generator)
    # Four entries share 64 random bits. On a CPU this takes a fifth of the time of one Bernoulli draw each.
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
    return torch.ge(bits.view(like.shape), threshold - _STEPS // 2, out=mask)
