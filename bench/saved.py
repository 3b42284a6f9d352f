"""What autograd keeps for the backward pass, counted on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Bytes of the memory that a forward pass saves for its backward pass.

    Each block of memory counts once and whole, however many saved tensors are views of it: it is kept alive
    whole. x counts where it is saved: in a net it is a result of the layer before, kept for nothing else.
    What a method keeps in other ways than saving it for backward is not seen.

    Args:
        forward: Runs the pass; its result need not be kept.
        own: Tensors that exist anyway, such as weights: their memory is not counted.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    blocks: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            blocks[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # alive until all are counted, so that no other block gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(blocks.values())
