"""What training a model with LoRA takes of each GPU's memory, before activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from fastlora.tables import Part, Table, as_html, as_text, decimal_size


class Memory(NamedTuple):
    """Bytes on the GPU that holds most; `str()` of it is a table.

    Attributes:
        weights: Of everything frozen.
        updates: Of everything trained.
        gradients: Of everything trained, in its own dtype.
        optimizer: State of everything trained.
        gathered: Whole parameters that FSDP2 holds for a time.
    """

    weights: int
    updates: int
    gradients: int
    optimizer: int
    gathered: int

    @property
    def total(self) -> int:
        """All of them; activations come on top."""
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
    """The memory of a model that FSDP2 divides over processes; one process holds it whole.

        weights + updates + gradients + optimizer, each divided by the processes
        + the whole parameters outside the groups + two times the largest whole group

    Two times, as FSDP2 gathers a group while the one before is in use. Each parameter is divided along its
    first dimension, and the first process has the largest part. Tensor parallel divides what is left by its
    own number. Nothing is allocated: the model may be on "meta".

    Args:
        model: A model with what is to be trained marked by requires_grad, not divided yet.
        processes: Over how many fully_shard divides it.
        groups: The modules that fully_shard is called on, but for the model itself: decoder layers.
        state_per_parameter: Bytes of the optimizer's state for each trained number; 8 for Adam in fp32.

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
    """Numbers of a parameter that the first process holds."""
    if parameter.dim() == 0:
        return 1
    return math.ceil(parameter.shape[0] / processes) * math.prod(parameter.shape[1:])


def _gathered(parameters: list[nn.Parameter], groups: list[nn.Module]) -> int:
    sizes = [sum(each.nbytes for each in group.parameters()) for group in groups]
    inside = {id(each) for group in groups for each in group.parameters()}
    rest = sum(each.nbytes for each in parameters if id(each) not in inside)
    return rest + 2 * max(sizes, default=0)
