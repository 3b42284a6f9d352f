"""What autograd keeps for the backward pass, counted on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakSet

import torch
from torch import Tensor


class _Saved:
    """A tensor in the hands of the graph; gone with the part of the graph that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(forward: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Bytes of the memory that a forward pass has saved for its backward pass when it is over.

    Each block of memory counts once and whole, however many saved tensors are views of it: it is kept alive
    whole. x counts where it is saved: in a net it is a result of the layer before, kept for nothing else.
    What a method keeps in other ways than saving it for backward is not seen. Blocks are told apart by their
    identity, as those of fake tensors all have the address 0.

    Args:
        forward: Runs the pass; what it returns keeps the graph alive.
        own: Tensors that exist anyway, such as weights: their memory is not counted.
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
