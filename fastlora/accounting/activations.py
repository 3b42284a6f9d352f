"""Counts the bytes that autograd saves for the backward pass, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakSet

import torch
from torch import Tensor


class _Saved:
    """A saved tensor; it is deleted together with the graph node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(forward: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Bytes that a finished forward pass keeps saved for its backward pass.

    Each storage counts once and in full, however many saved tensors are views of it. x counts if it is saved:
    in a net it is the output of the layer before, and nothing else keeps it. Memory that is kept in other
    ways than by save_for_backward is not seen. Storages are compared by identity, because those of fake
    tensors all have the address 0.

    Args:
        forward: Runs the pass; its result must keep the graph alive.
        own: Tensors that exist anyway, such as weights; their memory is not counted.
    """
    known = {tensor.untyped_storage()._cdata for tensor in own}
    held: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())  # with its graph, a result that is saved would keep itself alive
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        result = forward()
    storages = [saved.tensor.untyped_storage() for saved in held]
    blocks = {storage._cdata: storage.nbytes() for storage in storages}
    del result
    return sum(size for block, size in blocks.items() if block not in known)
