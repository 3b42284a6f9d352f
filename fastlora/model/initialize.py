"""Initializing updates from W itself: A and B take a part of W, and W keeps the rest.

    pissa    W = U S Vᵀ:  B = U_r √(S_r / s),  A = √(S_r / s) V_rᵀ     (arXiv 2404.02948)
    olora    W = Q R:     B = Q_r,             A = R_r                 (arXiv 2406.01775)

W becomes W - s B A, so that the layer computes the same as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from fastlora import lowrank
from fastlora.arguments import FROM_WEIGHT, check_choice
from fastlora.formula import oracle
from fastlora.formula.operands import accumulation_dtype, unaffected_by_autocast
from fastlora.layer.adapter import SLOTS
from fastlora.layer.base_weights import check_original_weights
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.magnitude import check_plain_lora
from fastlora.layer.sharding import all_finite
from fastlora.layer.writable import check_own_writable
from fastlora.lowrank import Factors
from fastlora.model.find_layers import existing_layers
from fastlora.model.merging import check_plain, check_unshared, fold
from fastlora.model.name_matching import listed


@exclusive
@torch.no_grad()
def initialize(model: nn.Module, start: str) -> None:
    """Initialize the updates of a model from its weights, in place. Its function changes by rounding alone.

    Call it once after `apply_lora`, before training, sharding and compiling. A and B keep their dtype; W is
    rounded once. The initial A [r, K] and B [N, r] are kept as `start_A` and `start_B`, in the state_dict
    too. With them, a layer that is switched off still applies the W from before. And `save_pretrained` and
    `save_adapter` write a plain LoRA update of rank 2 r for that W, which any program can load.

    Args:
        model: A model with LoRA layers whose updates are still zero.
        start: "pissa", the principal part of W by its singular value decomposition; "pissa-randomized", the
            same by a randomized one, for large W; or "olora", by a QR decomposition.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If `start` is unknown, there is no LoRA layer, or a layer is merged, has been trained, was
            initialized from W already, holds experts, has several adapters, a rank above its smaller side, a
            scaling s <= 0, or a W that is packed, is not finite or is shared with another module; or W, A or
            B is computed from other tensors (by a parametrization, say) or cannot be written in place.
    """
    check_choice("start", start, _STARTS)
    layers = _linear_layers(model)
    _check_startable(model, layers)
    # Everything that can fail is computed before the first W is changed.
    factors = {layer: _start_of(name, layer, start) for name, layer in layers.items()}
    with commit() as changing:
        for layer, (B, A) in factors.items():
            for slot, value in (("start_A", A), ("start_B", B)):
                changing.put(layer._buffers, slot, value)
            changing.put(vars(layer), "start_scaling", layer.scaling)
            changing.write(layer.lora_A, A)
            changing.write(layer.lora_B, B)
            fold(layer, partial(_left, layer, Factors(B, A)), changing)


def _linear_layers(model: nn.Module) -> dict[str, FusedLoRALinear]:
    layers = existing_layers(model)
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, FusedLoRALinear)}
    turned = [name for name, layer in linear.items() if layer.holds_transposed]
    if turned:
        raise ValueError(f"layers must hold W [N, K] to be started from W; {listed(turned)} holds a Conv1D's")
    others = [name for name in layers if name not in linear]
    if others:
        raise ValueError(
            f"layers must be linear to be started from W; {listed(others)} holds experts, an "
            "embedding or a convolution (exclude_modules leaves them out)"
        )
    return linear


def _start_of(name: str, layer: FusedLoRALinear, start: str) -> Factors:
    """The initial B and A, rounded to their dtype, for which W - s B A is finite."""
    found = _STARTS[start](layer.weight, layer.r, layer.scaling)
    with torch.inference_mode(False):
        kinds = ((found.B, layer.lora_B.dtype), (found.A, layer.lora_A.dtype))
        factors = Factors(*(each.detach().to(dtype).contiguous().clone() for each, dtype in kinds))
    if not all_finite(_left(layer, factors)):
        raise ValueError(f"W - s B A of layer {name!r} must be finite in {layer.weight.dtype} to be its W")
    return factors


@unaffected_by_autocast
def _left(layer: FusedLoRALinear, factors: Factors) -> Tensor:
    """W - s B A from the rounded A and B, so that their rounding cancels in W - s B A + s B A."""
    return oracle.effective_weight(layer.weight, factors.A, factors.B, -layer.scaling)


def _pissa(W: Tensor, r: int, s: float) -> Factors:
    return _scaled(lowrank.decompose(W).factors(r), s)


def _pissa_randomized(W: Tensor, r: int, s: float) -> Factors:
    # 16 as in the example of PEFT's documentation, "pissa_niter_16".
    return _scaled(lowrank.decompose_randomized(W, r, iterations=16).factors(r), s)


def _scaled(factors: Factors, s: float) -> Factors:
    return Factors(factors.B / math.sqrt(s), factors.A / math.sqrt(s))


def _olora(W: Tensor, r: int, s: float) -> Factors:
    Q, R = torch.linalg.qr(W.to(accumulation_dtype(W.dtype)))
    return Factors(Q[:, :r], R[:r])


_STARTS: Final[Mapping[str, Callable[[Tensor, int, float], Factors]]] = dict(
    zip(FROM_WEIGHT, (_pissa, _pissa_randomized, _olora), strict=True)
)


def _check_startable(model: nn.Module, layers: Mapping[str, FusedLoRALinear]) -> None:
    check_original_weights(layers, "it can be called once")
    for layer in layers.values():
        check_plain_lora(layers, layer.adapters.keys(), "be started from W")
    check_plain(layers, "initialize", 'LoRAConfig(init="orthogonal") starts both factors without W')
    for name, layer in layers.items():
        check_own_writable(layer, ("weight",), f"layer {name!r}")
        for adapter in layer.adapters.values():
            check_own_writable(adapter, SLOTS, f"layer {name!r}")
        smaller = min(layer.weight.shape)
        if layer.merged:
            raise ValueError(f"layer {name!r} must be unmerged to be started from W (unmerge_lora)")
        if len(layer.adapters) != 1 or layer.adapter is None:
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
