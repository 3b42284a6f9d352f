"""Several adapters on one model: add, switch, delete. W is neither copied nor changed.

Adapters have names; `apply_lora` makes the one called "default". One is in use at a time. A layer without A
and B for it applies W alone; the adapter "has no part" in this layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn

from fastlora.arguments import check_choice, check_dtype
from fastlora.config import LoRAConfig
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.layer.active_adapter import check_switchable, name_in_use, put_idle, switch
from fastlora.layer.adapter import Adapter, Options, check_name, new_adapter
from fastlora.layer.base_weights import check_original_weights, like_weight
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from fastlora.layer.magnitude import row_norms
from fastlora.layer.sharding import check_not_dtensor, reshard
from fastlora.layer.token_rows import TokenRows
from fastlora.model.apply import make_layers, options_for
from fastlora.model.ddp import note_change
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
from fastlora.model.targets import Target, find_targets
from fastlora.model.tasks import check_task, task_heads
from fastlora.model.token_rows import find_rows, put_rows, start_rows, with_rows
from fastlora.model.versions import (
    add_version,
    check_versions,
    drop_version,
    switch_versions,
)
from fastlora.model.wrappers import module_names


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters of a model, the one in use first.

    Raises:
        ValueError: If there is no LoRA layer.
    """
    layers = existing_layers(model).values()
    found = dict.fromkeys(name for layer in layers for name in layer.adapters)
    in_use = name_in_use(layers)
    return tuple(sorted(found, key=lambda name: name != in_use))


def active_adapter(model: nn.Module) -> str:
    """The adapter in use.

    Raises:
        ValueError: If there is no LoRA layer, or layers have different ones in use.
    """
    return cast(str, name_in_use(existing_layers(model).values()))


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
            the tokens are the same for all adapters.

    Returns:
        The model.

    Raises:
        TypeError: If an argument is of the wrong type, or as by `apply_lora`.
        ValueError: If there is no LoRA layer, the name is taken or invalid, or as by `apply_lora`.
    """
    layers = existing_layers(model)
    check_new(model, name)
    config = as_config(model, config)
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
        model = give_adapter(model, name, made, make_layers(model, plain, name), first)
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
) -> nn.Module:
    """Add a new adapter to LoRA layers, and replace plain layers by LoRA layers that have it.

    Args:
        model: A model with LoRA layers.
        name: The new adapter's name.
        made: {LoRA layer: its new A, B and options}.
        new: {plain layer: the LoRA layer to replace it}, made by `make_layers` with the new adapter in use.
        first: Modules to save that this adapter is the first to train; it has a version of all others too.

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
        return replace_modules(model, new.items())


@exclusive
def set_adapter(model: nn.Module, name: str) -> None:
    """Put an adapter in use, and its version of each module to save; the previous one is frozen.

    What is frozen loses its gradient.

    If A or B of an adapter was frozen when it was last in use, it is frozen again; else it is trained. A
    DistributedDataParallel around the model, or given as the model, adapts at its next forward pass, provided
    that all processes switch. An optimizer must be given the parameters of each adapter that it is to train.

    Raises:
        ValueError: If there is no such adapter, or a layer is merged, or A or B is computed from other
            tensors (by a parametrization, say).
        TypeError: If FullyShardedDataParallel holds A and B. Parameters that `fully_shard` or tensor parallel
            has sharded can be switched.
    """
    layers = existing_layers(model)
    _check_known(model, name)
    reshard(model)
    _check_switchable(layers, name)
    with commit() as changing:
        note_change(model, changing)
        for layer in layers.values():
            switch(layer, name, changing)
        switch_versions(model, name, changing)


@contextmanager
def use_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Put an adapter in use for a `with` block, and the previous one again afterwards.

    The previous one has its gradients again then, so that they may be accumulated around the block.

    Raises:
        ValueError: As by `set_adapter`.
        TypeError: As by `set_adapter`.
    """
    before, gradients = active_adapter(model), _gradients(model)
    try:
        try:
            set_adapter(model, name)
            yield
        finally:
            _put_back(model, before, gradients)
    finally:  # a second time, as Ctrl-C may have come just before the first call
        _put_back(model, before, gradients)


def _gradients(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters of the adapter in use and its modules to save, and their gradients."""
    adapters = (layer.active for layer in existing_layers(model).values() if layer.active is not None)
    own = chain(adapters, (module for _, module in saved_modules(model)))
    return [(p, p.grad) for module in own for p in module.parameters() if p.grad is not None]


@exclusive
def _put_back(model: nn.Module, name: str, gradients: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    if active_adapter(model) == name:
        return
    with commit() as changing:
        set_adapter(model, name)
        for parameter, gradient in gradients:
            if parameter.grad is None and parameter.requires_grad:
                changing.assign(parameter, "grad", gradient)


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
    _check_known(model, name)
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


def _check_switchable(layers: Mapping[str, LoRALayer], adapter: str) -> None:
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"layers must be unmerged to switch adapters; merged: {listed(merged)} (unmerge_lora)"
        )
    for name, layer in layers.items():
        check_switchable(layer, adapter, f"layer {name!r}")


def _check_known(model: nn.Module, name: object) -> None:
    check_choice("adapter", name, adapter_names(model))


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
    options = Options.checked(target.r, target.alpha, config.dropout, config.rslora, config.init, config.dora)
    layer = target.linear
    dtype = check_dtype("adapter_dtype", config.adapter_dtype)
    if isinstance(layer, FusedLoRAEmbedding):
        return layer.new_adapter(options, dtype)
    weight = layer.stack.weight if isinstance(layer, FusedLoRAExperts) else like_weight(layer)
    norms = row_norms(layer) if config.dora and not isinstance(layer, FusedLoRAExperts) else None
    return new_adapter(weight, options, dtype, norms)
