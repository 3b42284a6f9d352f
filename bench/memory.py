"""What one call holds in memory."""

from __future__ import annotations

import torch

from bench.timing import Call


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """The most device memory held during the call beyond what was held before it.

    Output, gradients, what is saved between them, temporaries; not the operands. None on the CPU, where torch
    does not count.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
