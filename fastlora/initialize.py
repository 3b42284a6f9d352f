"""Starting updates from W itself: A and B take a part of W, and W keeps the rest.

    pissa    W = U S Vᵀ:  B = U_r √(S_r / s),  A = √(S_r / s) V_rᵀ     (arXiv 2404.02948)
    olora    W = Q R:     B = Q_r,             A = R_r                 (arXiv 2406.01775)

and W becomes W - s B A, so that the layer computes what it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from fastlora import lowrank, reference
from fastlora.config import FROM_WEIGHT
from fastlora.layer import FusedLoRALinear
from fastlora.layers import existing_layers
from fastlora.lowrank import Factors
from fastlora.merging import check_unshared
from fastlora.residual import check_whole
from fastlora.shelf import adapters_of


@torch.no_grad()
def initialize(model: nn.Module, start: str) -> None:
    """Start the updates of a model from its weights, in place, its function unchanged within W's rounding.

    Call it once after `apply_lora`, before training, sharding and compiling. A and B keep their dtype; W is
    rounded once. What was taken out of W is kept beside it ([r, K] and [N, r]), in a state_dict as `start_A`
    and `start_B`: so a layer switched off still computes with the W from before, and `save_pretrained` and
    `save_adapter` write plain LoRA of rank 2 r beside that W, which anyone can load.

    Args:
        model: A model with LoRA layers, their updates still at zero.
        start: "pissa", the principal part of W by its singular value decomposition; "pissa-randomized", the
            same by a randomized one, for large W; or "olora", by a QR decomposition.

    Raises:
        ValueError: If `start` is unknown, there is no LoRA layer, or a layer is merged, has been trained, was
            started so already, has several adapters, a rank above its smaller side, a scaling s <= 0, or a W
            that is not finite or is shared with another module.
    """
    if start not in _STARTS:
        raise ValueError(f"start must be one of {', '.join(_STARTS)}; got {start!r}")
    layers = existing_layers(model)
    _check_startable(model, layers)
    # Whatever fails in a decomposition fails before the first W is changed.
    factors = {layer: _STARTS[start](layer.weight, layer.r, layer.scaling) for layer in layers.values()}
    for layer, (B, A) in factors.items():
        _take_out(layer, B.to(layer.lora_B.dtype), A.to(layer.lora_A.dtype))


def _take_out(layer: FusedLoRALinear, B: Tensor, A: Tensor) -> None:
    """W -= s B A, with A and B as they are rounded already; their rounding then cancels."""
    left = reference.effective_weight(layer.weight, A, B, -layer.scaling)
    layer.start_A, layer.start_B, layer.start_scaling = A.contiguous(), B.contiguous(), layer.scaling
    layer.reset_adapter()
    layer.weight.copy_(left)


def _pissa(W: Tensor, r: int, s: float) -> Factors:
    return _scaled(lowrank.decompose(W).factors(r), s)


def _pissa_randomized(W: Tensor, r: int, s: float) -> Factors:
    # What PEFT's documentation takes for an example, "pissa_niter_16".
    return _scaled(lowrank.decompose_randomized(W, r, iterations=16).factors(r), s)


def _scaled(factors: Factors, s: float) -> Factors:
    return Factors(factors.B / math.sqrt(s), factors.A / math.sqrt(s))


def _olora(W: Tensor, r: int, s: float) -> Factors:
    Q, R = torch.linalg.qr(W.to(reference.accumulation_dtype(W.dtype)))
    return Factors(Q[:, :r], R[:r])


_STARTS: Final[Mapping[str, Callable[[Tensor, int, float], Factors]]] = dict(
    zip(FROM_WEIGHT, (_pissa, _pissa_randomized, _olora), strict=True)
)


def _check_startable(model: nn.Module, layers: Mapping[str, FusedLoRALinear]) -> None:
    check_whole(layers, "it can be called once")
    for name, layer in layers.items():
        smaller = min(layer.weight.shape)
        if layer.merged:
            raise ValueError(f"layer {name!r} must be unmerged to be started from W (unmerge_lora)")
        if len(adapters_of(layer)) != 1 or layer.adapter is None:
            raise ValueError(f"layer {name!r} must have one adapter to be started from W, which all share")
        if layer.r > smaller:
            raise ValueError(
                f"r of layer {name!r} must be at most {smaller}, its smaller side, to be started from W; got "
                f"{layer.r} (rank_pattern gives it its own)"
            )
        if layer.scaling <= 0:
            raise ValueError(f"s of layer {name!r} must be positive to start from W; got {layer.scaling:g}")
        if layer.weight.is_meta or not layer.weight.isfinite().all():
            raise ValueError(f"W of layer {name!r} must hold finite values to start from")
        if layer.lora_B.any():
            raise ValueError(f"B of layer {name!r} must be zero, not trained, to be started from W")
    check_unshared(model, layers, "started from", "leave it out")
