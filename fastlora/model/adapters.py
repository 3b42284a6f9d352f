"""Several adapters on one model: adding and deleting them. W is neither copied nor changed.

Adapters have names; `apply_lora` makes the one called "default". One is in use at a time (see `switching`). A
layer without A and B for it applies W alone; the adapter "has no part" in this layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from fastlora.arguments import NO_BIASES, check_dtype
from fastlora.config import LoRAConfig
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.layer.active_adapter import put_idle, switch
from fastlora.layer.adapter import Adapter, Options
from fastlora.layer.adapter_name import check_name
from fastlora.layer.base_weights import check_original_weights, like_weight
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from fastlora.layer.lora_conv import LoRAConv
from fastlora.layer.magnitude import row_norms
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.sharding import check_not_dtensor, reshard
from fastlora.layer.token_rows import TokenRows
from fastlora.model.apply import make_layers, options_for
from fastlora.model.biases import check_one_adapter, give_biases, train_biases
from fastlora.model.find_layers import LoRALayer, check_outside_batches, existing_layers
from fastlora.model.groups import group_projections
from fastlora.model.modules_to_save import (
    find_modules_to_save,
    inside,
    mark_for_further,
    saved_modules,
)
from fastlora.model.name_matching import listed
from fastlora.model.peft_config import as_config
from fastlora.model.replace import replace_modules
from fastlora.model.switching import active_adapter, adapter_names, check_known
from fastlora.model.targets import Target, find_targets
from fastlora.model.tasks import check_task, task_heads
from fastlora.model.token_rows import find_rows, put_rows, start_rows, with_rows
from fastlora.model.versions import (
    add_version,
    check_versions,
    drop_version,
)
from fastlora.model.wrappers import module_names


@exclusive
def add_adapter(model: nn.Module, name: str, config: LoRAConfig) -> nn.Module:
    """Add a new adapter, whose update is zero, to a model with LoRA. The adapter in use stays in use.

    Targets are found as by `apply_lora`, but may also be layers that have LoRA already. Plain layers among
    them become LoRA layers. Nothing else changes in what is trained and what is frozen.

    Args:
        model: A model with LoRA layers, unmerged.
        name: Letters, digits, "_" and "-".
        config: Which layers, and what update. Its `modules_to_save` are the model's, or None for these; where
            the model has none, they are trained for this adapter alone. The adapter's version of each starts
            as a copy of the one in use. Its rows of tokens start as W's, and are trained if it names them;
            the tokens are the same for all adapters. Its `bias` must be "none" where another adapter trains
            biases.

    Returns:
        The model.

    Raises:
        TypeError: If an argument is of the wrong type, or as by `apply_lora`.
        ValueError: If there is no LoRA layer, the name is taken or invalid, or as by `apply_lora`.
    """
    layers = existing_layers(model)
    check_new(model, name)
    config = as_config(model, config)
    check_one_adapter(model, name, config.bias)
    known = set(layers.values())
    saved, first = _modules_of(model, config)
    if not first:
        check_task(model, config.task_type)
    heads = inside(task_heads(model, config.task_type)) & inside(saved)
    rows = find_rows(model, config.trainable_token_indices, config.adapter_dtype, inside(saved))
    trained = inside(saved) | with_rows(model, rows)
    targets = find_targets(model, config, adapted=known, trained=trained, heads=heads)
    made = {target.linear: _at_start(target, config) for target in targets if target.linear in known}
    plain = {target.linear: options_for(target, config) for target in targets if target.linear not in known}
    with commit() as changing:
        first += put_rows(rows, changing)
        model = give_adapter(model, name, made, make_layers(model, plain, name), first, config.bias)
        start_rows(model, name, trained=bool(rows))
        if config.group:
            group_projections(model)
    return model


@exclusive
def give_adapter(
    model: nn.Module,
    name: str,
    made: Mapping[LoRALayer, Adapter],
    new: Mapping[Any, LoRALayer],
    first: Collection[nn.Module] = (),
    biases: str = NO_BIASES,
) -> nn.Module:
    """Add a new adapter to LoRA layers, and replace plain layers by LoRA layers that have it.

    Args:
        model: A model with LoRA layers.
        name: The new adapter's name.
        made: {LoRA layer: its new A, B and options}.
        new: {plain layer: the LoRA layer to replace it}, made by `make_layers` with the new adapter in use.
        first: Modules to save that this adapter is the first to train; it has a version of all others too.
        biases: Which biases of the model it trains, once it is in use.

    Returns:
        The model.

    Raises:
        TypeError: If a weight is a DTensor.
    """
    in_use, others = active_adapter(model), adapter_names(model)
    reshard(model)
    names = module_names(model)
    for module in (*first, *(module for _, module in saved_modules(model))):
        check_versions(module, names[module][0])
    for layer in (*made, *new.values()):
        # A sharding library that has sharded W would not sync a later adapter: processes would train it
        # apart.
        check_not_dtensor(layer.weight, "weight of a layer with a further adapter")
    with commit() as changing:
        for layer in new.values():
            switch(layer, in_use, changing)
            layer._freeze_base()
        for layer, adapter in made.items():
            put_idle(layer, name, adapter, changing)
        mark_for_further(first, changing)
        for _, module in list(saved_modules(model)):
            add_version(module, name, others, in_use, module in first, changing)
        model = replace_modules(model, new.items())
        give_biases(model, name, biases, changing)
        train_biases(model, changing)
        return model


@exclusive
def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Delete an adapter that is not in use; layers left without any adapter become plain again.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such adapter, or it is in use (see `set_adapter`, and `remove_lora` for the
            last one), or inside `adapter_batch`.
        TypeError: If a layer to be made plain had its forward replaced.
    """
    layers = existing_layers(model)
    check_known(model, name)
    if name == active_adapter(model):
        raise ValueError(
            f"adapter {name!r} must not be in use to be deleted (set_adapter another first, or remove_lora)"
        )
    check_outside_batches(layers)
    plain = {
        layer: None if isinstance(layer, FusedLoRAExperts) else layer.to_linear(merge=False)
        for layer in layers.values()
        if set(layer.adapters) == {name}
    }
    with commit() as changing:
        for layer in layers.values():
            changing.drop(layer.adapters._modules, name)
        drop_version(model, name, changing)
        return replace_modules(model, plain.items())


def check_new(model: nn.Module, name: object) -> None:
    """Raise unless `name` can name a new adapter, in no batch, and no layer was initialized from its W."""
    check_outside_batches(existing_layers(model))
    check_original_weights(existing_layers(model), "further adapters need the W from before")
    if check_name(name) in adapter_names(model):
        raise ValueError(f"adapter name must be new; the model has {name!r} already (delete_adapter first)")


def _modules_of(model: nn.Module, config: LoRAConfig) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules to save of a further adapter, and those of them that no adapter has trained before."""
    saved = {own: module for own, module in saved_modules(model) if not isinstance(module, TokenRows)}
    if config.modules_to_save is None:
        return list(saved.values()), []
    chosen = find_modules_to_save(model, config.modules_to_save)
    if saved and set(chosen) != set(saved.values()):
        raise ValueError(
            f"modules_to_save of a further adapter must be the model's, {listed(saved)}, or None for these; "
            f"got {config.modules_to_save!r}"
        )
    return chosen, [module for module in chosen if module not in saved.values()]


def _at_start(target: Target, config: LoRAConfig) -> Adapter:
    options = Options.checked(
        *(target.r, target.alpha, config.dropout, config.rslora, config.init),
        *(config.dora, config.lora_bias),
    )
    layer = target.linear
    dtype = check_dtype("adapter_dtype", config.adapter_dtype)
    if isinstance(layer, (FusedLoRAEmbedding, LoRAConv)):
        return layer.new_adapter(options, dtype)
    weight = layer.stack.weight if isinstance(layer, FusedLoRAExperts) else like_weight(layer)
    norms = row_norms(layer) if config.dora and not isinstance(layer, FusedLoRAExperts) else None
    return new_adapter(weight, options, dtype, norms)
