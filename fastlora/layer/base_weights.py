"""Layers whose W is what is left of a larger one: where it comes from, and what updates are beside the whole.

`initialize` takes the start of an update out of W, so that the layer computes the same as before:

    W₀ = W + s₀ B₀ A₀          W + s B A = W₀ + s B A - s₀ B₀ A₀

The last two terms are one plain LoRA update of rank 2 r beside W₀, which is what others know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastlora.formula import oracle
from fastlora.layer.adapter import Options, adapters_of


def frozen_weight(layer: Any) -> Tensor:
    """W, wherever a FusedLoRALinear keeps it at present."""
    W: Tensor = layer.weight if layer._base_weight is None else layer._base_weight
    return W


def whole_weight(layer: Any) -> Tensor:
    """A copy of the W₀ [N, K] from before `initialize`, within one rounding; without it, exactly W."""
    W = frozen_weight(layer).detach()
    if layer.start_A is None:
        return W.clone()
    return oracle.effective_weight(W, layer.start_A, layer.start_B, layer.start_scaling)


@torch.no_grad()
def adapters_beside_whole(layer: Any) -> dict[str, tuple[Tensor, Tensor, Options]]:
    """As `adapters_of`, with every update as it is beside W₀; without `initialize`, the same tensors."""
    found = adapters_of(layer)
    if layer.start_A is None:
        return found
    return {name: _beside(layer, *adapter) for name, adapter in found.items()}


def _beside(layer: Any, A: Tensor, B: Tensor, options: Options) -> tuple[Tensor, Tensor, Options]:
    """[A; A₀] and [B, -B₀]: stacked, not multiplied by s, so that they are exact and cancel at the start."""
    s = layer.start_scaling
    # 1 unless somebody changed alpha.
    ratio = options.scaling / s
    stacked = torch.cat([A, layer.start_A.to(A.dtype)])
    beside = torch.cat([B * ratio, -layer.start_B.to(B.dtype)], dim=1)
    r = stacked.shape[0]
    return stacked, beside, options._replace(r=r, alpha=s * r, rslora=False)


def check_whole(layers: Mapping[str, Any], otherwise: str) -> None:
    """Raise ValueError, saying what to do otherwise, where `initialize` took a start out of a layer's W."""
    changed = [name for name, layer in layers.items() if layer.start_A is not None]
    if changed:
        raise ValueError(
            f"W of layer {changed[0]!r} must be whole; initialize took the start of the update out of it "
            f"({otherwise})"
        )
