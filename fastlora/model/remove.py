"""Taking LoRA off a model again, with W as it was or with the updates merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from fastlora.arguments import DTYPES, check_bool
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.layer import training_warnings
from fastlora.layer.base_weights import check_original_weights
from fastlora.layer.commits import Commit, commit, exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.packed_merging import warn_of_rounding
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.layer.replacement import check_own_forward
from fastlora.layer.sharding import check_not_dtensor
from fastlora.layer.writable import check_numbers, check_own, check_writable
from fastlora.model import buffers, transformers_saving
from fastlora.model.biases import warn_if_trained
from fastlora.model.find_layers import LoRALayer, existing_layers, lora_layers
from fastlora.model.merging import check_mergeable, fold
from fastlora.model.modules_to_save import unmark
from fastlora.model.replace import replace_modules
from fastlora.model.token_rows import check_rows_mergeable, take_rows


@exclusive
@torch.no_grad()
def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Put plain layers back, in place; every parameter object stays, and W stays frozen.

    Modules to save and biases that were trained stay as trained, and trainable.

    Args:
        model: A model with LoRA layers.
        merge: True makes each weight W + s B A, and each bias b + s b_B where B has one (a new parameter),
            even if the layer is disabled; False makes it exactly W. A packed layer becomes the library's own
            again; merged it becomes a plain one of the dtype that W was packed from, or where the layer does
            not keep that, of the model's, and a warning says what that costs.

    Returns:
        The model; the plain layer if the model itself is a LoRA layer. `unfreeze` makes it trainable.

    Raises:
        TypeError: If a layer's forward was replaced or compiled, or its weight is a DTensor.
        ValueError: If there is no LoRA layer; a weight to merge is shared with another module or would not be
            finite; `merge` is False and `initialize` has changed W; or a weight is computed from other
            tensors (by a parametrization, say) or cannot be written in place.

    Ctrl-C during merging takes effect after the last layer, because no copy of W is kept to undo with.
    """
    layers = existing_layers(model)
    if not check_bool(merge, "merge"):
        warn_if_trained(model, "remove_lora without merge=True")
    _check_removable(model, layers, merge)
    packed = {name: layer for name, layer in layers.items() if isinstance(layer, QuantizedLoRALinear)}
    whole = [layer for layer in layers.values() if not isinstance(layer, QuantizedLoRALinear)]
    if merge:
        # Tried here, so that an error comes before any change. Keeping the sums would double the memory.
        for layer in whole:
            layer._finite_sum()
    dtype = _dtype_of(model)
    repacked: dict[LoRALayer, nn.Linear] = {
        layer: layer.to_linear(merge, None if layer.format.keeps_dtype else dtype)
        for layer in packed.values()
    }
    plain: dict[LoRALayer, nn.Module | None] = {
        layer: None if isinstance(layer, FusedLoRAExperts) else layer._as_plain_linear() for layer in whole
    }
    plain |= repacked
    biases = {
        layer: layer._merged_bias(layer.weight.dtype)
        for layer in whole
        if isinstance(layer, FusedLoRALinear) and layer.lora_bias
    }
    with commit() as changing:
        unmark(model, changing)
        take_rows(model, merge, changing)
        buffers.forget(model, changing)
        transformers_saving.uninstall(model, changing)
        result = replace_modules(model, plain.items())
        for layer in whole:
            _settle(layer, merge, changing)
        for layer, bias in biases.items() if merge else ():
            for each in (layer, plain[layer]):
                changing.put(cast(nn.Module, each)._parameters, "bias", bias)
    for layer in layers.values():
        training_warnings.forget(layer)
    if merge and packed:
        warn_of_rounding({name: (layer, repacked[layer]) for name, layer in packed.items()})
    return result


def _check_removable(model: nn.Module, layers: Mapping[str, LoRALayer], merge: bool) -> None:
    """Raise, naming the layer, unless every layer can be replaced and its W be left as it is asked to be."""
    if merge:
        check_mergeable(model, layers)
        check_rows_mergeable(model)
    else:
        check_original_weights(layers, "remove_lora with merge=True, or load W anew")
    for name, layer in layers.items():
        check_own_forward(f"layer {name!r}", layer)
        check_own(layer.keeper[0], layer.keeper[1:], f"layer {name!r}")
        holds_b = isinstance(layer, QuantizedLoRALinear) and "bias" in vars(layer)  # HQQ's is no parameter
        if isinstance(layer, FusedLoRALinear) and not holds_b:
            check_own(layer, ("bias",), f"layer {name!r}")
        check_not_dtensor(layer.weight, f"weight of layer {name!r}")
        if layer.merged:
            check_numbers(layer.weight, f"weight of layer {name!r}")
            check_writable(layer.weight, f"weight of layer {name!r}")


def _settle(layer: LoRALayer, merge: bool, changing: Commit) -> None:
    """Leave W + s B A in the weight that the plain layer shares with this one, or W alone."""
    if not merge:
        changing.then(layer._put_back)
        return
    fold(layer, layer._sum, changing)
    # Another thread's forward may still use this layer: it must compute as its replacement.
    changing.put(vars(layer), "enabled", False)
    for slot in ("start_A", "start_B"):
        changing.put(layer._buffers, slot, None)


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of a model's first parameter that is plain and not LoRA's; None if there is none."""
    own = {
        id(each) for _, layer in lora_layers(model) for each in (*layer.adapters.parameters(), layer.weight)
    }
    kinds = (each.dtype for each in model.parameters() if id(each) not in own)
    return next((dtype for dtype in kinds if dtype in DTYPES), None)
