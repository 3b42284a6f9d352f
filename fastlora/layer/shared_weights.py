"""Whose W a change of one layer's W would change too: LoRA layers whose weights lie in the same memory."""

from __future__ import annotations

import gc
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fastlora.layer import training_warnings
from fastlora.layer.commits import Commit
from fastlora.layer.sharding import is_dtensor


def memory_of(tensor: Tensor) -> object:
    """A key that is equal for two tensors if writing to one changes the other."""
    if tensor.is_meta or tensor.numel() == 0 or is_dtensor(tensor) or type(tensor.data) is not torch.Tensor:
        return id(tensor)
    return tensor.device, tensor.data_ptr()


def seen_elsewhere(tensor: Tensor) -> bool:
    """Whether other processes may see a tensor's memory, as after `share_memory`; told on a CPU alone."""
    return type(tensor.data) is torch.Tensor and tensor.is_cpu and tensor.is_shared()


def put_values(W: Tensor, values: Tensor) -> None:
    """Give W new values: in place, or where other processes see the old ones, in memory of its own.

    Layers there would add their update to the new ones a second time.
    """
    if seen_elsewhere(W):
        W.data = values
    else:
        W.copy_(values)


def write_here(W: Tensor, values: Tensor, changing: Commit, before: Tensor | None = None) -> None:
    """As `put_values`, in a commit; `before` as in `Commit.write`."""
    if seen_elsewhere(W):
        changing.assign(W, "data", values)
    else:
        changing.write(W, values, before)


def check_unshared_elsewhere(layers: Collection[Any], to_be: str) -> None:
    """Raise ValueError if changing the W of these layers would change another LoRA layer, of any model.

    Only layers that are alive count, and none that `remove_lora` took out.
    """
    if _found(layers) is not None:
        gc.collect()  # it may be one that nobody holds any more
    if (found := _found(layers)) is not None:
        one, other = found
        raise ValueError(
            f"weight of {one} must belong to this layer alone to be {to_be}; it is shared by another LoRA "
            f"layer, {other} (give one of them a weight of its own first, or delete the other)"
        )


def _found(layers: Collection[Any]) -> tuple[str, str] | None:
    """The names of one of these layers and of another that shares its W."""
    inside = set(map(id, layers))
    own = {memory_of(W): layer for layer in layers if (W := _weight_of(layer)) is not None}
    for other in training_warnings.watched():
        if id(other) not in inside and (W := _weight_of(other)) is not None and memory_of(W) in own:
            return training_warnings.name_of(own[memory_of(W)]), training_warnings.name_of(other)
    return None


def _weight_of(layer: Any) -> nn.Parameter | None:
    """W as the layer holds it; None while it is computed from other tensors."""
    owner, name = layer.keeper
    W: nn.Parameter | None = owner._parameters.get(name)
    return W
