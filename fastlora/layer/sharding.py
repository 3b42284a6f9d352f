"""Tensors spread over processes (DTensors): recognizing them, gathering them, finding the local shard.

Importing `torch.distributed.tensor` takes a second, so this module uses it only if somebody else has imported
it. Before that, no tensor can be a DTensor.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, which several processes hold together, as shards or as replicas."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on every process. If it is a DTensor, this is a collective: all must call it."""
    detached: Any = tensor.detach()
    result: Tensor = detached.full_tensor() if is_dtensor(tensor) else detached
    return result


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; a collective if it is a DTensor.

    Non-finite entries are counted and the counts summed: `isfinite().all()` of a DTensor would only answer
    for the local shard.
    """
    # Detached, as torch 2.13 locks up where one thread makes a parameter's first node of the graph, for which
    # it waits for Python's lock, and another calls a function of that parameter, holding it.
    return not whole((~tensor.detach().isfinite()).sum())


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory; a plain tensor itself."""
    detached: Any = tensor.detach()
    result: Tensor = detached.to_local() if is_dtensor(tensor) else detached
    return result


@torch.no_grad()
def part_of(values: Tensor, like: Tensor) -> Tensor:
    """The part of the full `values` that this process holds of `like`; nothing is communicated."""
    if not is_dtensor(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    dtensor: Any = like
    # No source rank, because every process has the values already.
    return distribute_tensor(values, dtensor.device_mesh, dtensor.placements, src_data_rank=None).to_local()


def reshard(model: nn.Module) -> None:
    """Have FSDP2 shard parameters again that a forward pass has left gathered.

    Gathered copies are plain tensors, and FSDP2 frees them at the next step: a write to one is lost.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None or not hasattr(module, "FSDPModule"):
        return
    for part in model.modules():
        if isinstance(part, module.FSDPModule):
            part.reshard()


def check_not_dtensor(tensor: Tensor, what: str) -> None:
    """Raise TypeError, calling the tensor `what`, if it is a DTensor."""
    if is_dtensor(tensor):
        raise TypeError(
            f"{what} must not be spread over processes for this (do it before fully_shard or "
            "parallelize_module)"
        )
