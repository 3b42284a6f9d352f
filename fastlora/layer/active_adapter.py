"""Which of a layer's adapters is in use, and how to switch.

The layer holds a plain reference to the adapter in use, which is not registered as a second submodule. A
switch changes this reference and requires_grad. No tensor moves, so compiled code finds the adapter's tensors
where it expects them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fastlora.layer.adapter import Adapter
from fastlora.layer.commits import Commit
from fastlora.layer.training_warnings import look_again
from fastlora.layer.writable import check_own

REFERENCE = "_active"


def put_idle(layer: Any, name: str, adapter: Adapter, changing: Commit) -> None:
    """Add an adapter to a layer without putting it in use."""
    adapter.name, adapter.of_embedding = name, isinstance(layer, nn.Embedding)
    adapter.train(layer.training)
    _rest(adapter, changing)
    changing.put(layer.adapters._modules, name, adapter)


def switch(layer: Any, name: str, changing: Commit) -> None:
    """Put the adapter of this name in use; if the layer has no such adapter, none is in use afterwards."""
    before: Adapter | None = vars(layer)[REFERENCE]
    chosen: Adapter | None = layer.adapters._modules.get(name)
    if chosen is before:
        return
    if before is not None:
        changing.put(
            vars(before), "trains", tuple(getattr(before, slot).requires_grad for slot in before.slots)
        )
        _rest(before, changing)
    if chosen is not None:
        for slot, trained in zip(chosen.slots, chosen.trains, strict=True):
            changing.assign(getattr(chosen, slot), "requires_grad", trained)
    changing.put(vars(layer), REFERENCE, chosen)
    look_again(layer)


def _rest(adapter: Adapter, changing: Commit) -> None:
    """Freeze an adapter, so that no optimizer changes it."""
    for slot in adapter.slots:
        changing.freeze(getattr(adapter, slot))


def check_switchable(layer: Any, name: str, what: str) -> None:
    """Raise unless a layer, called `what` in messages, can switch to the adapter of this name.

    Raises:
        ValueError: If A or B is computed from other tensors, by a parametrization, say.
        TypeError: If FSDP1 has flattened A and B into one parameter with others.
    """
    for adapter in (vars(layer)[REFERENCE], layer.adapters._modules.get(name)):
        if adapter is None:
            continue
        check_own(adapter, adapter.slots, what)
        if any(getattr(adapter._parameters[slot], "_fsdp_flattened", False) for slot in adapter.slots):
            raise TypeError(
                f"A and B of {what} must be parameters of their own to be switched; they lie in one of "
                "FullyShardedDataParallel's (switch before wrapping, or shard by fully_shard)"
            )


def name_in_use(layers: Iterable[Any]) -> str | None:
    """The name of the adapter that the layers have in use; None if no layer has one.

    Raises:
        ValueError: If the layers have different ones in use.
    """
    names = dict.fromkeys(layer.adapter for layer in layers if layer.adapter is not None)
    if len(names) > 1:
        raise ValueError(
            f"layers must have one adapter in use; they have {', '.join(names)} (see set_adapter)"
        )
    return next(iter(names), None)
