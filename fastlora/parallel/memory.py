"""The memory that training a model with LoRA takes on each GPU, without activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from fastlora.tables import Part, Table, as_html, as_text, decimal_size


class Memory(NamedTuple):
    """Bytes on the GPU that holds the most; `str()` of it is a table.

    Attributes:
        weights: All frozen parameters.
        updates: All trained parameters.
        gradients: The gradients of all trained parameters, in their dtypes.
        optimizer: The optimizer's state of all trained parameters.
        gathered: Unsharded parameters that FSDP2 holds temporarily.
    """

    weights: int
    updates: int
    gradients: int
    optimizer: int
    gathered: int

    @property
    def total(self) -> int:
        """The sum; activations come on top."""
        return sum(self)

    def parts(self) -> list[Part]:
        """One table."""
        held = {**self._asdict(), "total": self.total}
        return [Table(("per GPU", ""), [(name, decimal_size(size)) for name, size in held.items()])]

    def __str__(self) -> str:
        return as_text(self.parts())

    def _repr_html_(self) -> str:
        return as_html(self.parts())


def memory_per_gpu(
    model: nn.Module, processes: int = 1, groups: Iterable[nn.Module] = (), *, state_per_parameter: int = 8
) -> Memory:
    """The memory on each GPU of a model that FSDP2 shards over processes; with one process, of all of it.

        (weights + updates + gradients + optimizer) / processes
        + the unsharded parameters outside the groups + twice the largest unsharded group

    Twice, because FSDP2 gathers a group while the one before is still in use. Each parameter is sharded along
    its first dimension, and the first process has the largest shard. Tensor parallel divides the result
    further by its own number of processes. Nothing is allocated, so the model may be on "meta".

    Args:
        model: A model that is not sharded yet; requires_grad says what is trained.
        processes: The number of processes that fully_shard shards over.
        groups: The modules that fully_shard is called on, except the model itself: decoder layers, say.
        state_per_parameter: Bytes of optimizer state for each trained number; 8 for Adam in fp32.

    Raises:
        ValueError: If `processes` is below 1.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    parameters = list(model.parameters())
    frozen = [each for each in parameters if not each.requires_grad]
    trained = [each for each in parameters if each.requires_grad]
    updates = sum(_part(each, processes) * each.itemsize for each in trained)
    return Memory(
        weights=sum(_part(each, processes) * each.itemsize for each in frozen),
        updates=updates,
        gradients=updates,
        optimizer=sum(_part(each, processes) for each in trained) * state_per_parameter,
        gathered=_gathered(parameters, list(groups)) if processes > 1 else 0,
    )


def _part(parameter: nn.Parameter, processes: int) -> int:
    """Number of entries of a parameter that the first process holds."""
    if parameter.dim() == 0:
        return 1
    return math.ceil(parameter.shape[0] / processes) * math.prod(parameter.shape[1:])


def _gathered(parameters: list[nn.Parameter], groups: list[nn.Module]) -> int:
    sizes = [sum(each.nbytes for each in group.parameters()) for group in groups]
    inside = {id(each) for group in groups for each in group.parameters()}
    rest = sum(each.nbytes for each in parameters if id(each) not in inside)
    return rest + 2 * max(sizes, default=0)
