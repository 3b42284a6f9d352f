"""Tensors spread over processes: telling them, making them whole, finding a process's part.

`torch.distributed.tensor` takes a second to import, so it is looked at only where it is loaded: without it no
tensor is spread.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: one that several processes hold together, in parts or as copies."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor on every process; all of them must call it where it is spread."""
    spread: Any = tensor.detach()
    result: Tensor = spread.full_tensor() if is_spread(tensor) else spread
    return result


def all_finite(tensor: Tensor) -> bool:
    """Whether no part of a tensor holds NaN or infinity; a collective where it is spread.

    Counted and added up, as each process would answer `isfinite().all()` for its own part alone.
    """
    return not whole((~tensor.isfinite()).sum())


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the tensor's own memory."""
    spread: Any = tensor.detach()
    result: Tensor = spread.to_local() if is_spread(tensor) else spread
    return result


@torch.no_grad()
def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Of whole values the part that this process holds of `like`; nothing is communicated."""
    if not is_spread(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    spread: Any = like
    # No source rank: each process has the values already.
    return distribute_tensor(values, spread.device_mesh, spread.placements, src_data_rank=None).to_local()


def reshard(model: nn.Module) -> None:
    """Have FSDP2 hold parameters in parts again, where a forward pass left gathered copies of them.

    Those copies are thrown away at the next step: what is written to them is lost, and they do not look
    spread.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None or not hasattr(module, "FSDPModule"):
        return
    for part in model.modules():
        if isinstance(part, module.FSDPModule):
            part.reshard()


def check_not_spread(tensor: Tensor, what: str) -> None:
    """Raise TypeError if the tensor is spread, calling it `what`."""
    if is_spread(tensor):
        raise TypeError(
            f"{what} must not be spread over processes for this (do it before fully_shard or "
            "parallelize_module)"
        )
