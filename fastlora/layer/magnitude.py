"""DoRA's m: where it starts, and which layers have one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from fastlora.arguments import listed
from fastlora.formula.operands import accumulation_dtype
from fastlora.layer.base_weights import frozen_weight, like_weight

_NAMED: Final = 6


@torch.no_grad()
def row_norms(layer: Any) -> Tensor:
    """‖W‖ by rows [N] of a layer, plain or packed, with LoRA on it or not: the start of m."""
    W = like_weight(layer)
    W = W if W.is_meta else frozen_weight(layer).detach()
    n: Tensor = torch.linalg.vector_norm(W, dim=1, dtype=accumulation_dtype(W.dtype))
    return n


def check_plain_lora(layers: Mapping[str, Any], names: Collection[str], to: str) -> None:
    """Raise ValueError, naming layers, if one of these adapters is DoRA's, which cannot be used `to` ...."""
    scaled = [
        name
        for name, layer in layers.items()
        if any(adapter.dora for each, adapter in layer.adapters.items() if each in names)
    ]
    if scaled:
        raise ValueError(
            f"adapters must be plain LoRA, without DoRA's magnitudes, to {to}; DoRA is on "
            f"{listed(scaled, _NAMED)}"
        )
