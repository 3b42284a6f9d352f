"""LoRA that torch computes, around an embedding or a convolution."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fastlora import arguments
from fastlora.arguments import check_bool
from fastlora.layer import commits
from fastlora.layer.adapter import Adapter, Options
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.forward_pass import frozen
from fastlora.layer.replaced_layers import in_place_of_lora
from fastlora.layer.replacement import check_own_forward, linear_as
from fastlora.layer.state import Stored

_Layer = TypeVar("_Layer", bound="Unfused")


class Unfused(Stored):
    """What both have in common. A layer's class is also a subclass of that of the layer it goes around."""

    _library_class: type
    weight: nn.Parameter

    @classmethod
    def _around(cls: type[_Layer], module: Any, *, adapter_dtype: Any, name: str, **options: Any) -> _Layer:
        """A LoRA layer around a layer, which is unchanged; the caller freezes W and b."""
        dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
        checked = Options.checked(**options)
        layer = cast(_Layer, linear_as(module, cast(Any, cls)))
        layer._begin(name, layer.new_adapter(checked, dtype))
        return layer

    def new_adapter(self, options: Options, dtype: torch.dtype | None) -> Adapter:
        """A new adapter, whose update is zero.

        Raises:
            ValueError: If the options ask for what such a layer has not, as for DoRA.
        """
        raise NotImplementedError

    def _freeze_base(self) -> None:
        with commit() as changing:
            for own in filter(None, (self._parameters["weight"], self._parameters.get("bias"))):
                changing.freeze(own)

    def forward(self, x: Tensor) -> Tensor:
        """As the library's layer, with the update."""
        return self._computed(x) if is_compiling() else commits.undisturbed(self._computed, x)

    def _computed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _weight_now(self) -> Tensor:
        """The weight to apply: a merged one is not trained, as unmerging would drop what it learned."""
        kept = self._base_weight
        if kept is None:
            return self.weight
        if self._active is None or not self.enabled:
            return kept
        return frozen(self.weight, type(self).__name__) if self.weight.requires_grad else self.weight

    @exclusive
    @torch.inference_mode(False)  # a plain layer may be trained later
    @torch.no_grad()
    def to_linear(self, merge: bool = True) -> Any:
        """The library's layer, with a new weight that holds the update, or with this one's own.

        Raises:
            TypeError: If this layer's forward was replaced.
            ValueError: If `merge` is True and the weight would hold NaN or infinity.
        """
        check_bool(merge, "merge")
        check_own_forward("layer", self)
        plain = self._as_plain_linear()
        if merge:
            plain.weight = nn.Parameter(self._finite_sum(), requires_grad=False)
        elif self._base_weight is not None:
            plain.weight = nn.Parameter(self._base_weight.clone(), requires_grad=False)
        return in_place_of_lora(plain)

    def _as_plain_linear(self) -> Any:
        return linear_as(cast(Any, self), self._library_class, without=self._own_attributes)

    def reset_parameters(self) -> None:
        """Reset W, b and all adapters. Called after `to_empty`."""
        cast(Any, super()).reset_parameters()
        if "adapters" in self._modules:  # the library's constructor calls this before they exist
            self.reset_adapters()
