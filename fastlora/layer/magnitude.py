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
    return norms_of(W if W.is_meta else frozen_weight(layer).detach())


def norms_of(W: Tensor) -> Tensor:
    """‖W‖ by rows [N] of W [N, K], in fp32 (fp64 for fp64)."""
    n: Tensor = torch.linalg.vector_norm(W, dim=1, dtype=accumulation_dtype(W.dtype))
    return n


@torch.no_grad()
def is_at_start(layer: Any, adapter: Any) -> bool:
    """Whether a DoRA adapter's update is zero and its m that of W still, so that it is not trained."""
    m, A, B = adapter.lora_magnitude_vector, adapter.lora_A, adapter.lora_B
    if any(each.is_meta for each in (layer.weight, m, A, B)):
        return False
    # A rank adds nothing where its row of A or its column of B is zero, as both are in `init="orthogonal"`.
    return not (A.any(1) & B.any(0)).any() and torch.equal(m, row_norms(layer).to(m.dtype))


def check_plain_lora(layers: Mapping[str, Any], names: Collection[str], to: str) -> None:
    """Raise ValueError, naming layers, if one of these adapters, to be used `to` ..., has more than A, B."""
    scaled = [
        name
        for name, layer in layers.items()
        if any(len(adapter.slots) > 2 for each, adapter in layer.adapters.items() if each in names)
    ]
    if scaled:
        raise ValueError(
            f"adapters must be plain LoRA, without DoRA's magnitudes or a bias of B, to {to}; these are not: "
            f"{listed(scaled, _NAMED)}"
        )
