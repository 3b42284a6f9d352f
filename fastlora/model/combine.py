"""A weighted sum of adapters as one new adapter.

    s B A = sum_i w_i s_i B_i A_i

This is exact if the A_i are stacked and the w_i s_i B_i concatenated (r = sum_i r_i, s = 1). For a smaller r,
the singular value decomposition gives the nearest update of that rank (Eckart and Young, 1936).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastlora.arguments import check_rank, shown
from fastlora.formula.operands import accumulation_dtype
from fastlora.layer.adapter import Adapter, Options, adapters_of
from fastlora.layer.commits import exclusive
from fastlora.layer.magnitude import check_plain_lora
from fastlora.lowrank import decompose_product
from fastlora.model.adapters import check_new, give_adapter
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.modules_to_save import saved_modules
from fastlora.model.name_matching import listed
from fastlora.model.switching import active_adapter, adapter_names
from fastlora.warning import warn


@exclusive
@torch.no_grad()
def combine_adapters(
    model: nn.Module, weights: Mapping[str, float], name: str, *, r: int | None = None
) -> None:
    """Add a new adapter whose update is the weighted sum of others'. The one in use stays in use.

    It gets a part in each layer that any of them has a part in. Each A and B is rounded once, to the widest
    dtype among those combined. The new adapter has no dropout. Modules to save, such as heads, are not
    summed: it gets a copy of those in use, and a warning names them.

    Args:
        model: A model that has the adapters.
        weights: {name: weight}; weights may be negative.
        name: The new adapter's name.
        r: Its rank. None means the sum of the ranks, which loses nothing; a smaller r gives the nearest
            update of that rank.

    Raises:
        TypeError: If a weight is not a number, or r not an int.
        ValueError: If there is no adapter to combine, one is unknown, not finite or DoRA's, a weight is not
            finite, or the name is taken or invalid.
    """
    layers = existing_layers(model)
    check_new(model, name)
    _check_weights(weights, adapter_names(model))
    check_plain_lora(layers, weights, "be combined")
    if r is not None:
        check_rank(r)
    made: dict[LoRALayer, Adapter] = {}
    for layer_name, layer in layers.items():
        own = adapters_of(layer)
        parts = [(*own[each], float(weight)) for each, weight in weights.items() if each in own]
        if parts:
            made[layer] = _combined(parts, r, layer_name)
    give_adapter(model, name, made, {})
    if saved := [own for own, _ in saved_modules(model)]:
        warn(
            f"modules to save are not combined: adapter {name!r} has a copy of those of "
            f"{active_adapter(model)!r}, which are {listed(saved)}",
        )


def _combined(parts: list[tuple[Tensor, Tensor, Options, float]], r: int | None, layer: str) -> Adapter:
    dtype = parts[0][0].dtype
    for A, _, _, _ in parts:
        dtype = torch.promote_types(dtype, A.dtype)
    wide = accumulation_dtype(dtype)
    stacked = torch.cat([A.to(wide) for A, _, _, _ in parts], dim=-2)
    concatenated = torch.cat(
        [B.to(wide) * (weight * options.scaling) for _, B, options, weight in parts], dim=-1
    )
    if not (stacked.isfinite().all() and concatenated.isfinite().all()):
        raise ValueError(f"adapters must be finite to be combined; those of layer {layer!r} are not")
    if r is not None and r < stacked.shape[-2]:
        concatenated, stacked = _nearest(concatenated, stacked, r)
    rank = stacked.shape[-2]
    with torch.inference_mode(False):
        A, B = (nn.Parameter(tensor.detach().to(dtype).clone()) for tensor in (stacked, concatenated))
    return Adapter(A, B, Options(r=rank, alpha=float(rank), dropout=0.0, rslora=False, init="gaussian"))


def _nearest(B: Tensor, A: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The factors of rank r, or of all ranks that there are, nearest to B A; of stacks each for itself."""
    if A.dim() > 2:
        pairs = [_nearest(B_e, A_e, r) for B_e, A_e in zip(B, A, strict=True)]
        return torch.stack([B_e for B_e, _ in pairs]), torch.stack([A_e for _, A_e in pairs])
    spectrum = decompose_product(B, A)
    found = spectrum.factors(min(r, spectrum.S.shape[0]))
    return found.B, found.A


def _check_weights(weights: object, names: tuple[str, ...]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"weights must map at least one adapter to its weight; got {shown(weights)}")
    for name, weight in weights.items():
        if not isinstance(name, str) or name not in names:
            raise ValueError(
                f"weights must name adapters of the model, {', '.join(names)}; got {shown(name)}"
            )
        wanted = f"weights[{name!r}] must be a finite number; got {shown(weight)}"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(wanted)
        if not abs(weight) <= sys.float_info.max:
            raise ValueError(wanted)
