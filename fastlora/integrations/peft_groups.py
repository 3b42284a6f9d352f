"""Groups of layers that PEFT makes one after the other, without a model at hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from fastlora.integrations.peft_layer import Fused
from fastlora.layer.commits import commit
from fastlora.model.group_names import tuples_for
from fastlora.model.groups import put_together, why_not_together


class Grouping:
    """Makes layers as `make` does, and groups each with those made before it that share its x.

    Args:
        make: What PEFT calls for a new layer; it gives the layer's name as `target_name`.
    """

    def __init__(self, make: Callable[..., nn.Module | None]) -> None:
        self._make = make
        # By parent and tuple of names: the layers made so far, by their own names.
        self._made: dict[tuple[str, tuple[str, ...]], dict[str, weakref.ref[nn.Module]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a config makes layers of another model."""
        return Grouping, (self._make,)

    def __call__(self, *args: Any, target_name: str = "", **options: Any) -> nn.Module | None:
        """A layer, or None where PEFT is to make its own."""
        layer = self._make(*args, target_name=target_name, **options)
        if isinstance(layer, Fused):
            parent, _, own = target_name.rpartition(".")
            for names in tuples_for(parent, None):
                if own in names:
                    self._add(parent, names, own, layer)
        return layer

    def _add(self, parent: str, names: tuple[str, ...], own: str, layer: nn.Module) -> None:
        made = self._made.setdefault((parent, names), {})
        if own in made:  # of another model by this config
            made.clear()
        made[own] = weakref.ref(layer)
        found = [(f"{parent}.{name}", made[name]()) for name in names if name in made]
        layers = [one for _, one in found if one is not None]
        if len(layers) == len(found) > 1 and why_not_together(layers) is None:
            with commit() as changing:
                put_together(layers, [name for name, _ in found], changing)
