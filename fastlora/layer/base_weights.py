"""The weight W₀ from before `initialize`, and adapters expressed relative to it.

`initialize` (PiSSA, OLoRA) subtracts the initial update from W, so that the layer's function stays the same:

    W₀ = W + s₀ B₀ A₀          W + s B A = W₀ + s B A - s₀ B₀ A₀

The last two terms are a plain LoRA update of W₀ with rank 2 r. Files hold this one, because other programs
have W₀ and not W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlora.formats.format import Format
from fastlora.formats.registry import FORMATS, format_of
from fastlora.formula import oracle
from fastlora.formula.operands import unaffected_by_autocast
from fastlora.layer.adapter import Options, adapters_of
from fastlora.layer.conv1d import turned
from fastlora.routes.dequantize import dequantize

# A packed LoRA layer's attribute with the name of its format.
FORMAT = "_format"


def packed_format(layer: Any) -> Format | None:
    """How a layer's W is packed, with LoRA on it or not; None for a plain W."""
    name = vars(layer).get(FORMAT)
    return format_of(layer) if name is None else FORMATS[name]


def stored_weight(layer: Any) -> Any:
    """The parameter that holds the W of a layer, packed or not, or of a stack of experts."""
    format = packed_format(layer) if isinstance(layer, nn.Module) else None
    return layer.weight if format is None else getattr(layer, format.parameter)


def like_weight(layer: Any) -> Tensor:
    """A tensor with W's shape, dtype and device: W itself, or a stand-in without values for a packed W."""
    format = packed_format(layer)
    if format is None:
        return turned(layer, layer.weight)
    kind: dict[str, Any] = {"device": stored_weight(layer).device, "dtype": format.values_dtype(layer)}
    return torch.empty((), **kind).expand(layer.out_features, layer.in_features)


def frozen_weight(layer: Any) -> Tensor:
    """W [N, K] itself: `layer.weight`, the copy kept aside while it is merged, or a packed W unpacked."""
    if (format := packed_format(layer)) is not None:
        return dequantize(format.base_of(layer, format.values_dtype(layer)))
    kept: Tensor | None = getattr(layer, "_base_weight", None)  # which only a LoRA layer has
    return turned(layer, layer.weight if kept is None else kept)


@unaffected_by_autocast
def original_weight(layer: Any) -> Tensor:
    """A copy of W₀ [N, K], exact to one rounding; of W, exactly, if the layer was not initialized from it."""
    W = frozen_weight(layer).detach()
    if layer.start_A is None:
        return W.clone()
    return oracle.effective_weight(W, layer.start_A, layer.start_B, layer.start_scaling)


@unaffected_by_autocast
def left_of(layer: Any, W: Tensor) -> Tensor:
    """What `initialize` leaves of a W₀ [N, K], for the start that it has taken out: W₀ - s₀ B₀ A₀."""
    return oracle.effective_weight(W, layer.start_A, layer.start_B, -layer.start_scaling)


@torch.no_grad()
def adapters_for_original(layer: Any) -> dict[str, tuple[Tensor, Tensor, Options]]:
    """As `adapters_of`, with every update relative to W₀; without `initialize`, the same tensors."""
    found = adapters_of(layer)
    if layer.start_A is None:
        return found
    return {name: _for_original(layer, *adapter) for name, adapter in found.items()}


def _for_original(layer: Any, A: Tensor, B: Tensor, options: Options) -> tuple[Tensor, Tensor, Options]:
    """[A; A₀] and [B, -B₀]. Not multiplied by s: so they are exact, and cancel before training."""
    s = layer.start_scaling
    # 1, unless alpha was changed.
    ratio = options.scaling / s
    stacked = torch.cat([A, layer.start_A.to(A.dtype)])
    concatenated = torch.cat([B * ratio, -layer.start_B.to(B.dtype)], dim=1)
    r = stacked.shape[0]
    return stacked, concatenated, options._replace(r=r, alpha=s * r, rslora=False)


def check_original_weights(layers: Mapping[str, Any], otherwise: str) -> None:
    """Raise ValueError, with the advice `otherwise`, if `initialize` has changed the W of a layer."""
    changed = [name for name, layer in layers.items() if layer.start_A is not None]
    if changed:
        raise ValueError(
            f"W of layer {changed[0]!r} must be whole; initialize took the start of the update out of it "
            f"({otherwise})"
        )
