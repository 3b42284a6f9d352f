"""Merging over a packed W: into a plain layer alone, and what that does to memory and to values.

Packed again, W + s B A would lose most of the update to rounding, so a packed layer is never merged in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.arguments import check_bool
from fastlora.formats.format import Format
from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight
from fastlora.layer.base_weights import FORMAT
from fastlora.layer.commits import exclusive
from fastlora.layer.merging import MergeableLinear, finite
from fastlora.layer.replaced_layers import in_place_of_lora
from fastlora.layer.replacement import check_own_forward, linear_as
from fastlora.routes.dequantize import dequantize
from fastlora.warning import warn

# Where a module keeps what its user hooked on to it.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class PackedMerging(MergeableLinear):
    """The part of QuantizedLoRALinear that knows how W is packed, and merges."""

    # Of the packed layer that LoRA was put around.
    _library_class: type = nn.Linear

    @property
    def format(self) -> Format:
        """How W is packed."""
        return FORMATS[vars(self)[FORMAT]]

    @property
    def base(self) -> BaseWeight:
        """W as it is packed, in the dtype that the library packed it from."""
        return self.format.base_of(self, self.format.values_dtype(self))

    @property
    def keeper(self) -> tuple[nn.Module, str]:
        """This layer, and the name of its parameter that holds the packed W."""
        return self, self.format.parameter

    def merge(self) -> None:
        """Refused: the weight cannot hold the sum (see `to_linear`).

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"merge must keep W's bits; packed again as {self.format.about}, W + s B A would lose most of "
            "the update (to_linear, or remove_lora(model, merge=True), gives a plain layer)"
        )

    @exclusive
    @torch.inference_mode(False)  # a plain layer may be trained later
    @torch.no_grad()
    def to_linear(self, merge: bool = True, dtype: torch.dtype | None = None) -> nn.Linear:
        """A layer without LoRA, with this layer's bias, hooks and mode; this layer is unchanged.

        Args:
            merge: True gives an nn.Linear whose new weight is W + s B A, summed in fp32 and rounded once.
                False gives the library's own layer with this layer's own packed tensors.
            dtype: Of the merged weight and bias; None means the one that W was packed from. Layers of int8
                and fp8 do not keep that: then it is the bias's, and without a bias fp16 or bf16.

        Raises:
            TypeError: If this layer's forward was replaced, or dtype is not one of fp16, bf16, fp32 and fp64.
            ValueError: If `merge` is True and W + s B A holds NaN or infinity.
        """
        check_bool(merge, "merge")
        dtype = arguments.check_dtype("dtype", dtype)
        check_own_forward("layer", self)
        return in_place_of_lora(self._merged_linear(dtype) if merge else self._as_plain_linear())

    def _as_plain_linear(self) -> nn.Linear:
        own = (*self._own_attributes, FORMAT)
        return linear_as(self, cast("type[nn.Linear]", self._library_class), without=own)

    def _merged_linear(self, dtype: torch.dtype | None) -> nn.Linear:
        total = finite(self._sum(dtype))
        merged = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        merged.weight = nn.Parameter(total, requires_grad=False)
        if (b := self._merged_bias(total.dtype)) is not None:
            merged.bias = nn.Parameter(b.detach().to(total.dtype), requires_grad=False)
        merged.train(self.training)
        for hooks in _HOOKS:
            setattr(merged, hooks, getattr(self, hooks))
        return merged

    def _sum(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.format.values_dtype(self)
        W, active = self._unpacked(dtype), self._active
        return (W if active is None else active.added_to(W)).to(dtype)

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """W to add the update to, if the sum is to have this dtype: in fp32, or fp64."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return dequantize(self.format.base_of(self, wide))

    @torch.no_grad()
    def rounding(self, dtype: torch.dtype | None = None) -> float:
        """‖round(W + s B A) - (W + s B A)‖ / ‖s B A‖: what `to_linear` of this dtype loses of the update.

        NaN where the update is zero.
        """
        dtype = dtype or self.format.values_dtype(self)
        W, active = self._unpacked(dtype), self._active
        if active is None:
            return math.nan
        exact = active.added_to(W)
        lost, update = exact.to(dtype).to(exact.dtype) - exact, float((exact - W).norm())
        return float(lost.norm()) / update if update else math.nan


def warn_of_rounding(layers: Mapping[str, tuple[PackedMerging, nn.Linear]]) -> None:
    """Say what merging packed layers into plain ones does to their memory and their values."""
    shares = {name: layer.rounding(plain.weight.dtype) for name, (layer, plain) in layers.items()}
    worst = max(shares, key=lambda name: -1.0 if math.isnan(shares[name]) else shares[name])
    packed = sum(bytes_of(layer.base) for layer, _ in layers.values())
    whole = sum(plain.weight.nbytes for _, plain in layers.values())
    warn(
        f"merging {len(layers)} packed layers makes them plain: {whole / 1e6:,.1f} MB of weights instead of "
        f"{packed / 1e6:,.1f} MB. Rounding W + s B A to its dtype moves it by at most {shares[worst]:.1%} of "
        f"the update (layer {worst!r}); pack the merged model anew and the update may drown in that rounding",
    )


def bytes_of(base: BaseWeight) -> int:
    """Bytes of the tensors that hold W."""
    return sum(tensor.numel() * tensor.itemsize for tensor in base.tensors)
