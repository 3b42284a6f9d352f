"""What one call holds in memory."""

from __future__ import annotations

import torch

from bench.timing import Call, nothing


def peak_bytes(call: Call, device: torch.device, before: Call = nothing) -> int | None:
    """The most device memory held during the call beyond what was held before it.

    Output, gradients, what is saved between them, temporaries; not the operands. None on the CPU, where torch
    does not count.

    Args:
        call: What is looked at.
        device: Where.
        before: What runs ahead of the call; what it leaves is not counted.
    """
    if device.type != "cuda":
        return None
    before()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held
