"""How much a level does to get its times."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch


class Effort(NamedTuple):
    """What measuring takes of a setting.

    Attributes:
        device: Where.
        rounds: How often each method is timed, at most.
        fewest_rounds: And at least.
        warm_up_rounds: At most this many before.
        matmul_size: Rows and columns of the square product that sets the matrix ceiling.
        copy_bytes: Size of the buffer whose copy sets the bandwidth ceiling.
    """

    device: torch.device
    rounds: int
    fewest_rounds: int
    warm_up_rounds: int
    matmul_size: int
    copy_bytes: int


_FEWEST_ROUNDS: Final = 7
_WARM_UP_ROUNDS: Final = 10

# A product that takes the device some milliseconds, and a copy far larger than its caches.
_MATMUL_SIZES: Final = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES: Final = {"cpu": 2**30, "cuda": 4 * 2**30}


def effort_on(device: torch.device, rounds: int) -> Effort:
    """The effort of a level on a device, with so many rounds at most."""
    return Effort(
        device=device,
        rounds=rounds,
        fewest_rounds=min(rounds, _FEWEST_ROUNDS),
        warm_up_rounds=_WARM_UP_ROUNDS,
        matmul_size=_MATMUL_SIZES[device.type],
        copy_bytes=_COPY_BYTES[device.type],
    )
