"""Adding LoRA to a whole model, removing it, and switching it on and off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fastlora.arguments import DTYPES, check_bool
from fastlora.config import LoRAConfig
from fastlora.experts.layer import FusedLoRAExperts, layer_over
from fastlora.experts.stacks import Stack
from fastlora.layer.active_adapter import name_in_use
from fastlora.layer.adapter import DEFAULT
from fastlora.layer.around import lora_layer_around
from fastlora.layer.base_weights import check_original_weights
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.layer.replacement import check_own_forward
from fastlora.layer.rounding import warn_of_rounding
from fastlora.layer.sharding import check_not_dtensor
from fastlora.layer.writable import check_own, check_writable
from fastlora.model import buffers, transformers_saving
from fastlora.model.find_layers import (
    LoRALayer,
    check_model,
    check_outside_batches,
    existing_layers,
    lora_layers,
)
from fastlora.model.freezing import freeze
from fastlora.model.groups import group_projections
from fastlora.model.merging import check_mergeable, fold
from fastlora.model.modules_to_save import (
    find_modules_to_save,
    inside,
    mark,
    unmark,
)
from fastlora.model.peft_config import as_config
from fastlora.model.replace import replace_modules
from fastlora.model.targets import Target, find_targets
from fastlora.model.tasks import heads_to_train, remember_task
from fastlora.model.token_rows import (
    check_rows_mergeable,
    find_rows,
    put_rows,
    take_rows,
    token_rows,
    with_rows,
)
from fastlora.model.wrappers import module_names

_Model = TypeVar("_Model", bound=nn.Module)


@exclusive
def apply_lora(model: _Model, config: Any) -> _Model:
    """Add a LoRA update to linear layers of a model, in place, and freeze everything else.

    The modules that `config.modules_to_save` names are trained in full, too. Every other parameter, including
    those of norms and embeddings, is frozen and loses its gradient. Buffers such as running means still
    change in training mode; saving an adapter warns of those that did. Everything is checked before anything
    is changed.

    target_modules="all-linear" means each module that is exactly an nn.Linear, except layers that have LoRA
    already, and the output head that a Transformers model names (as in PEFT). In a mixture it means the
    experts' weights too, where they are 3-D parameters of a module that takes Transformers' hook for experts;
    the router is frozen. The Conv1D of GPT-2 counts as an nn.Linear. Subclasses are left out, as their weight
    may be used without calling them: nn.MultiheadAttention does so with its out_proj. To name any of these
    explicitly, except the head, is an error. Other linear maps that are not an nn.Linear (other experts, say)
    are an error, unless exclude_modules leaves them out.

    A layer registered in several places is replaced in all of them. A weight tied to another module's stays
    tied. If a parent reads a layer's weight without calling the layer, the update has no effect there. For
    nn.TransformerEncoderLayer, the inference fast path that does so is turned off.

    Args:
        model: Any module; it may itself be an nn.Linear.
        config: Which layers, and what update: a LoRAConfig, or a peft.LoraConfig that uses no option that is
            unsupported here.

    Returns:
        The model; the new layer if the model itself is an nn.Linear (a FusedLoRALinear is one).

    Raises:
        TypeError: If an argument is of the wrong type, or a module that was named is not exactly an nn.Linear
            (or its forward was replaced or compiled), or "all-linear" meets linear maps of another kind.
        ValueError: If a pattern matches nothing (near names are listed), nothing is left to adapt, a layer
            that was named has LoRA already, or a module to save shares a weight with the rest; or inside
            `adapter_batch`.
    """
    check_model(model)
    check_outside_batches(dict(lora_layers(model)))
    config = as_config(model, config)
    saved, heads = find_modules_to_save(model, config.modules_to_save), heads_to_train(model, config)
    rows = find_rows(model, config.trainable_token_indices, config.adapter_dtype, inside([*saved, *heads]))
    trained = inside([*saved, *heads]) | with_rows(model, rows)
    targets = find_targets(model, config, trained=trained, heads=inside(heads))
    in_use = name_in_use(layer for _, layer in lora_layers(model))
    options = {target.linear: options_for(target, config) for target in targets}
    layers = make_layers(model, options, in_use or DEFAULT)
    with commit() as changing:
        applied = replace_modules(model, layers.items())
        put_rows(rows, changing)
        mark([*saved, *heads, *(each.rows for each in rows)], changing)
        remember_task(applied, config.task_type, changing)
        freeze(applied)
        buffers.note(applied, changing)
        transformers_saving.install(applied, changing)
        if config.group:
            group_projections(applied)
    return cast(_Model, applied)


def options_for(target: Target, config: LoRAConfig) -> dict[str, Any]:
    """The options of `FusedLoRALinear.from_linear` for a target."""
    return {
        "r": target.r,
        "alpha": target.alpha,
        "dropout": config.dropout,
        "rslora": config.rslora,
        "init": config.init,
        "dora": config.dora,
        "adapter_dtype": config.adapter_dtype,
    }


def make_layers(
    model: nn.Module, options: Mapping[Any, Mapping[str, Any]], adapter: str
) -> dict[Any, LoRALayer]:
    """Make, but do not yet put in place, a LoRA layer for each plain layer or stack, with this adapter.

    Plain layers and stacks do not change; the caller freezes W and b when it puts the LoRA layers in place.
    """
    names = module_names(model)
    layers: dict[Any, LoRALayer] = {}
    for plain, chosen in options.items():
        if isinstance(plain, Stack):
            layers[plain] = layer_over(plain, adapter, **chosen)
            layers[plain].applied_as = f"{names[plain.experts][0]}.{plain.parameter}".lstrip(".")
        else:
            layers[plain] = lora_layer_around(plain, name=adapter, **chosen)
            layers[plain].applied_as = names[plain][0]
    return layers


@exclusive
@torch.no_grad()
def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Put plain layers back, in place; every parameter object stays, and stays frozen.

    Args:
        model: A model with LoRA layers.
        merge: True makes each weight W + s B A, even if the layer is disabled; False makes it exactly W. A
            packed layer becomes the library's own again; merged it becomes a plain one of the dtype that W
            was packed from, or where the layer does not keep that, of the model's, and a warning says what
            that costs.

    Returns:
        The model; the plain layer if the model itself is a LoRA layer. `unfreeze` makes it trainable.

    Raises:
        TypeError: If a layer's forward was replaced or compiled, or its weight is a DTensor.
        ValueError: If there is no LoRA layer; a weight to merge is shared with another module or would not be
            finite; `merge` is False and `initialize` has changed W; or a weight is computed from other
            tensors (by a parametrization, say) or cannot be written in place.

    Ctrl-C during merging takes effect after the last layer, because no copy of W is kept to undo with.
    """
    check_bool(merge, "merge")
    layers = existing_layers(model)
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
            check_writable(layer.weight, f"weight of layer {name!r}")
    packed = {name: layer for name, layer in layers.items() if isinstance(layer, QuantizedLoRALinear)}
    whole = [layer for layer in layers.values() if layer not in packed.values()]
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
    with commit() as changing:
        unmark(model, changing)
        take_rows(model, merge, changing)
        buffers.forget(model, changing)
        transformers_saving.uninstall(model, changing)
        result = replace_modules(model, plain.items())
        for layer in whole:
            if merge:
                fold(layer, layer._sum, changing)
                # Another thread's forward may still use this layer: it must compute as its replacement.
                changing.put(vars(layer), "enabled", False)
                for slot in ("start_A", "start_B"):
                    changing.put(layer._buffers, slot, None)
            else:
                changing.then(layer._put_back)
    if merge and packed:
        warn_of_rounding({name: (layer, repacked[layer]) for name, layer in packed.items()})
    return result


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of a model's first parameter that is plain and not LoRA's; None if there is none."""
    own = {
        id(each) for _, layer in lora_layers(model) for each in (*layer.adapters.parameters(), layer.weight)
    }
    kinds = (each.dtype for each in model.parameters() if id(each) not in own)
    return next((dtype for dtype in kinds if dtype in DTYPES), None)


@exclusive
def set_lora_enabled(model: nn.Module, on: bool) -> None:
    """Switch every update on or off, rows of tokens too; when off, forward applies W alone.

    Raises:
        TypeError: If `on` is not a bool.
        ValueError: If there is no LoRA layer.
    """
    check_bool(on, "on")
    _enable(dict.fromkeys(_switches(model), on))


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Switch every update off for a `with` block; afterwards each layer is as before.

    Raises:
        ValueError: If there is no LoRA layer.
    """
    before = {each: each.enabled for each in _switches(model)}
    try:
        try:
            set_lora_enabled(model, False)
            yield
        finally:
            _enable(before)
    finally:  # a second time, as Ctrl-C may have come just before the first call
        _enable(before)


def _switches(model: nn.Module) -> list[Any]:
    """What has an `enabled`: the LoRA layers and the rows of tokens."""
    return [*existing_layers(model).values(), *(rows for _, _, rows in token_rows(model))]


@exclusive
def _enable(switches: Mapping[Any, bool]) -> None:
    with commit() as changing:
        for layer, on in switches.items():
            changing.put(vars(layer), "enabled", on)
