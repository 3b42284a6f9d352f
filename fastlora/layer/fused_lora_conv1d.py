"""FusedLoRAConv1D: a trained low-rank update on the Conv1D of Transformers' GPT-2."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.layer.adapter import DEFAULT, Options
from fastlora.layer.base_weights import like_weight
from fastlora.layer.commits import exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.magnitude import row_norms
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.replacement import check_plain_conv1d, linear_as

_SIZES = ("in_features", "out_features")
# Transformers' own start of a Conv1D.
_STD = 0.02


class FusedLoRAConv1D(FusedLoRALinear):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b with `weight` [in_features, out_features], W transposed, as a Conv1D has it.

    It is made around a Conv1D (`apply_lora`, `from_linear`), whose parameters, attributes and state_dict
    names it takes over. A is [r, in_features] and B [out_features, r], as on any layer; what its methods
    return as a weight lies as `weight` does.
    """

    holds_transposed = True
    in_features: int
    out_features: int
    _library_class: type

    @classmethod
    def _from_linear_unfrozen(
        cls, linear: Any, *, adapter_dtype: Any, name: str = DEFAULT, **options: Any
    ) -> FusedLoRAConv1D:
        """As FusedLoRALinear's, around a Conv1D."""
        check_plain_conv1d("linear", linear)
        adapter_dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
        checked = Options.checked(**options)
        layer = linear_as(linear, cls)
        K, N = linear.weight.shape
        vars(layer).update(in_features=K, out_features=N, _library_class=type(linear))
        norms = row_norms(linear) if checked.dora else None
        layer._begin(name, new_adapter(like_weight(linear), checked, adapter_dtype, norms))
        return layer

    @exclusive
    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """As FusedLoRALinear's, [in_features, out_features]."""
        found = super().effective_weight()
        return found if self.enabled else found.t().contiguous()

    def _sum(self) -> Tensor:
        return super()._sum().t().contiguous()

    def _as_plain_linear(self) -> nn.Linear:
        own = (*self._own_attributes, *_SIZES, "_library_class")
        library = cast("type[nn.Linear]", self._library_class)  # a Conv1D, for all that callers do with it
        return linear_as(self, library, without=own)

    def reset_parameters(self) -> None:
        """Reset W, b and all adapters, as a Conv1D starts. Called after `to_empty`."""
        nn.init.normal_(self.weight, std=_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.reset_adapters()
