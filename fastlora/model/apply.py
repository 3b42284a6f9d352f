"""LoRA put on a whole model, taken off it, and switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fastlora.arguments import check_bool
from fastlora.config import LoRAConfig
from fastlora.layer.active_adapter import name_in_use
from fastlora.layer.adapter import DEFAULT
from fastlora.layer.base_weights import check_whole
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.replacement import check_own_forward
from fastlora.layer.sharding import check_not_spread
from fastlora.layer.writable import check_own, check_writable
from fastlora.model import buffers, transformers_saving
from fastlora.model.find_layers import check_model, existing_layers, lora_layers
from fastlora.model.freezing import freeze
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
from fastlora.model.wrappers import module_names

_Model = TypeVar("_Model", bound=nn.Module)


@exclusive
def apply_lora(model: _Model, config: Any) -> _Model:
    """Give linear layers of a model a LoRA update, in place, and freeze all but the updates.

    What `config.modules_to_save` names is trained in full besides. Everything is checked before anything is
    changed. Every other parameter, those of norms and embeddings included, is frozen and loses its gradient;
    buffers such as running means still move in training mode, and a save names those that did.

    With target_modules="all-linear", each module that is exactly an nn.Linear is taken. Left out are
    subclasses (their weight may be used without calling them, as nn.MultiheadAttention does with its
    out_proj), the output head that a Transformers model names (as PEFT does), and layers that have LoRA
    already. Named explicitly, any of these but the head is an error. Linear maps that are no nn.Linear (the
    Conv1D of GPT-2, experts in 3-D parameters) must be left out by exclude_modules; else they are an error.

    A layer registered in several places is replaced in all of them. A weight tied to another module's stays
    tied. A layer whose weight its parent reads without calling it does not see the update, except in
    nn.TransformerEncoderLayer, whose inference fast path is turned off.

    Args:
        model: Any module; it may itself be an nn.Linear.
        config: Which layers, and what update: a LoRAConfig, or a peft.LoraConfig without fields that have no
            meaning here.

    Returns:
        The model; the new layer where the model itself is an nn.Linear (a FusedLoRALinear is one).

    Raises:
        TypeError: If an argument is of the wrong type, or a module that was named is not exactly an nn.Linear
            (or its forward was replaced or compiled), or "all-linear" meets linear maps of another kind.
        ValueError: If a pattern matches nothing (near names are listed), nothing is left to adapt, a layer
            that was named has LoRA already, or a module to save shares a weight with the rest.
    """
    check_model(model)
    config = as_config(model, config)
    saved, heads = find_modules_to_save(model, config.modules_to_save), heads_to_train(model, config)
    targets = find_targets(model, config, trained=inside([*saved, *heads]), heads=inside(heads))
    in_use = name_in_use(layer for _, layer in lora_layers(model))
    options = {target.linear: options_for(target, config) for target in targets}
    layers = make_layers(model, options, in_use or DEFAULT)
    with commit() as changing:
        applied = replace_modules(model, layers.items())
        mark([*saved, *heads], changing)
        remember_task(applied, config.task_type, changing)
        freeze(applied)
        buffers.note(applied, changing)
        transformers_saving.install(applied, changing)
    return cast(_Model, applied)


def options_for(target: Target, config: LoRAConfig) -> dict[str, Any]:
    """What `FusedLoRALinear.from_linear` takes for a target."""
    return {
        "r": target.r,
        "alpha": target.alpha,
        "dropout": config.dropout,
        "rslora": config.rslora,
        "init": config.init,
        "adapter_dtype": config.adapter_dtype,
    }


def make_layers(
    model: nn.Module, options: Mapping[nn.Linear, Mapping[str, Any]], adapter: str
) -> dict[nn.Linear, FusedLoRALinear]:
    """A FusedLoRALinear for each plain layer of a model, not yet in its place, the update named `adapter`.

    Nothing of the plain layers changes: W and b are to be frozen when theirs takes their place.
    """
    names = module_names(model)
    layers: dict[nn.Linear, FusedLoRALinear] = {}
    for linear, chosen in options.items():
        layers[linear] = layer = FusedLoRALinear._beside(linear, name=adapter, **chosen)
        layer.applied_as = names[linear][0]
    return layers


@exclusive
@torch.no_grad()
def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Put plain nn.Linear layers back, in place; every parameter object stays, and stays frozen.

    Args:
        model: A model with LoRA layers.
        merge: Whether each weight becomes W + s B A, also where the layer is disabled, or is exactly W.

    Returns:
        The model; the plain layer where the model itself is a LoRA layer. `unfreeze` makes it trainable.

    Raises:
        TypeError: If a layer's forward was replaced or compiled, or its weight is spread over processes.
        ValueError: If there is no LoRA layer, or a weight to merge is shared with another module or would
            not be finite; or W is wanted back from a layer where `initialize` took the update out of it; or a
            weight is computed from others (by a parametrization, say) or cannot be written in place.

    Ctrl-C while weights are merged is answered when the last one is: W is not kept aside.
    """
    check_bool(merge, "merge")
    layers = existing_layers(model)
    if merge:
        check_mergeable(model, layers)
    else:
        check_whole(layers, "remove_lora with merge=True, or load W anew")
    for name, layer in layers.items():
        check_own_forward(f"layer {name!r}", layer)
        check_own(layer, ("weight", "bias"), f"layer {name!r}")
        check_not_spread(layer.weight, f"weight of layer {name!r}")
        if layer.merged:
            check_writable(layer.weight, f"weight of layer {name!r}")
    if merge:
        # Whatever fails in a sum fails here; keeping the sums would take a second copy of the model.
        for layer in layers.values():
            layer._finite_sum()
    plain = {layer: layer._plain_twin() for layer in layers.values()}
    with commit() as changing:
        unmark(model, changing)
        buffers.forget(model, changing)
        transformers_saving.uninstall(model, changing)
        result = replace_modules(model, plain.items())
        for layer in layers.values():
            if merge:
                fold(layer, layer._sum, changing)
                # Another thread's forward pass may have found this layer: it is what takes its place now.
                changing.put(vars(layer), "enabled", False)
                for slot in ("start_A", "start_B"):
                    changing.put(layer._buffers, slot, None)
            else:
                changing.then(layer._put_back)
    return result


@exclusive
def set_lora_enabled(model: nn.Module, on: bool) -> None:
    """Switch every update on, or off: forward then applies W alone.

    Raises:
        TypeError: If `on` is not a bool.
        ValueError: If there is no LoRA layer.
    """
    check_bool(on, "on")
    _enable(dict.fromkeys(existing_layers(model).values(), on))


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Switch every update off for a `with` block, and each layer back to what it was afterwards.

    Raises:
        ValueError: If there is no LoRA layer.
    """
    before = {layer: layer.enabled for layer in existing_layers(model).values()}
    try:
        try:
            set_lora_enabled(model, False)
            yield
        finally:
            _enable(before)
    finally:  # again, as Ctrl-C may come before the first has begun
        _enable(before)


@exclusive
def _enable(switches: Mapping[FusedLoRALinear, bool]) -> None:
    with commit() as changing:
        for layer, on in switches.items():
            changing.put(vars(layer), "enabled", on)
