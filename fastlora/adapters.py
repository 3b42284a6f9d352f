"""Several adapters on one model: add, choose, combine, delete. W is neither copied nor touched.

Adapters have names; `apply_lora` makes the one called "default". One is in use at a time. Layers that it has
no part in then apply W alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import nn

from fastlora.arguments import check_choice
from fastlora.changes import commit, exclusive
from fastlora.config import LoRAConfig, check_dtype
from fastlora.layer import FusedLoRALinear
from fastlora.layers import existing_layers
from fastlora.model import make_layers, options_for
from fastlora.peft_config import as_config
from fastlora.replace import replace_modules
from fastlora.residual import check_whole
from fastlora.saved import inside, saved_modules
from fastlora.shelf import (
    SLOTS,
    Adapter,
    Options,
    adapters_of,
    blank_adapter,
    check_name,
    exchange,
    name_in_use,
    new_adapter,
    put_on_shelf,
    shelf_of,
    take_off_shelf,
)
from fastlora.targets import Target, find_targets, listed
from fastlora.tasks import check_task, task_heads
from fastlora.writable import check_own


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters of a model, the one in use first.

    Raises:
        ValueError: If there is no LoRA layer.
    """
    layers = existing_layers(model).values()
    found = dict.fromkeys(name for layer in layers for name in adapters_of(layer))
    in_use = name_in_use(layers)
    return tuple(sorted(found, key=lambda name: name != in_use))


def active_adapter(model: nn.Module) -> str:
    """The adapter in use.

    Raises:
        ValueError: If there is no LoRA layer, or layers were given different ones.
    """
    return cast(str, name_in_use(existing_layers(model).values()))


@exclusive
def add_adapter(model: nn.Module, name: str, config: LoRAConfig) -> nn.Module:
    """Give a model with LoRA one more adapter, at its start, where it is zero. The one in use stays in use.

    Targets are found as by `apply_lora`, but layers that have LoRA take part too; plain layers get it. What
    is frozen and what is trained otherwise stays as it is.

    Args:
        model: A model with LoRA layers, unmerged.
        name: Letters, digits, "_" and "-".
        config: Which layers, and what update; without `modules_to_save`, which all adapters share.

    Returns:
        The model.

    Raises:
        TypeError: If an argument is of the wrong type, or as by `apply_lora`.
        ValueError: If there is no LoRA layer, the name is taken or unsound, or as by `apply_lora`.
    """
    layers = existing_layers(model)
    check_new(model, name)
    config = as_config(model, config)
    if config.modules_to_save is not None:
        raise ValueError(
            "modules_to_save must be None for a further adapter, as modules are trained in place, for all "
            f"adapters; got {config.modules_to_save!r}"
        )
    known = set(layers.values())
    check_task(model, config.task_type)
    saved = [module for _, module in saved_modules(model)]
    heads = inside(task_heads(model, config.task_type)) & inside(saved)
    targets = find_targets(model, config, adapted=known, trained=inside(saved), heads=heads)
    made = {target.linear: _at_start(target, config) for target in targets if target.linear in known}
    plain = {target.linear: options_for(target, config) for target in targets if target.linear not in known}
    return give_adapter(model, name, made, make_layers(model, plain, name))


@exclusive
def give_adapter(
    model: nn.Module,
    name: str,
    made: Mapping[FusedLoRALinear, Adapter],
    new: Mapping[nn.Linear, FusedLoRALinear],
) -> nn.Module:
    """Put a new adapter on the shelves of LoRA layers, and of layers made of plain ones; nothing is checked.

    Args:
        model: A model with LoRA layers.
        name: The new adapter's.
        made: Its part in layers that have LoRA.
        new: What takes the places of plain layers; `make_layers` made it, with its part in use.

    Returns:
        The model.
    """
    blanks = {layer: blank_adapter(layer.weight) for layer in new.values()}
    with commit() as changing:
        for layer, blank in blanks.items():
            exchange(layer, None, blank, changing)
            layer._freeze_base()
        for layer, adapter in made.items():
            put_on_shelf(layer, name, adapter, changing)
        return replace_modules(model, new.items())


@exclusive
def set_adapter(model: nn.Module, name: str) -> None:
    """Put an adapter in use; the one that was is frozen and loses its gradient.

    What was trained of an adapter is trained again when it comes back. DistributedDataParallel remembers
    which parameters are trained, so a switch must come before it.

    Raises:
        ValueError: If there is no such adapter, or a layer is merged, or A or B is computed from others (by a
            parametrization, say).
        TypeError: If a parameter is sharded; a switch must come before sharding.
    """
    layers = existing_layers(model)
    _check_known(model, name)
    check_switchable(layers)
    blanks = {
        layer: blank_adapter(layer.weight) for layer in layers.values() if name not in adapters_of(layer)
    }
    with commit() as changing:
        for layer in layers.values():
            if layer in blanks:
                exchange(layer, None, blanks[layer], changing)
            elif layer.adapter != name:
                exchange(layer, name, take_off_shelf(layer, name, changing), changing)


@contextmanager
def use_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Put an adapter in use for a `with` block, and the one before back afterwards.

    Raises:
        ValueError: As by `set_adapter`.
        TypeError: As by `set_adapter`.
    """
    before = active_adapter(model)
    try:
        try:
            set_adapter(model, name)
            yield
        finally:
            _put_back(model, before)
    finally:  # again, as Ctrl-C may come before the first has begun
        _put_back(model, before)


@exclusive
def _put_back(model: nn.Module, name: str) -> None:
    if active_adapter(model) != name:
        set_adapter(model, name)


@exclusive
def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Take an adapter that is not in use away; layers left without any become plain nn.Linear again.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such adapter, or it is in use (see `set_adapter`, and `remove_lora` for the
            last one).
        TypeError: If a layer to be made plain had its forward replaced.
    """
    layers = existing_layers(model)
    _check_known(model, name)
    if name == active_adapter(model):
        raise ValueError(
            f"adapter {name!r} must not be in use to be deleted (set_adapter another first, or remove_lora)"
        )
    plain = {
        layer: layer.to_linear(merge=False)
        for layer in layers.values()
        if layer.adapter is None and set(shelf_of(layer)) == {name}
    }
    with commit() as changing:
        for layer in layers.values():
            if name in shelf_of(layer):
                take_off_shelf(layer, name, changing)
        return replace_modules(model, plain.items())


def check_new(model: nn.Module, name: object) -> None:
    """Raise unless `name` can be the name of one more adapter, which finds the W it would be made for."""
    check_whole(existing_layers(model), "further adapters need the W from before")
    if check_name(name) in adapter_names(model):
        raise ValueError(f"adapter name must be new; the model has {name!r} already (delete_adapter first)")


def check_switchable(layers: Mapping[str, FusedLoRALinear]) -> None:
    """Raise unless A and B of the layers can be exchanged for others."""
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"layers must be unmerged to switch adapters; merged: {listed(merged)} (unmerge_lora)"
        )
    for name, layer in layers.items():
        check_own(layer, SLOTS, f"layer {name!r}")
        for slot in SLOTS:
            kind = type(getattr(layer, slot))
            if kind is not nn.Parameter:
                raise TypeError(
                    f"{slot} of layer {name!r} must be a plain nn.Parameter to be exchanged; it is a "
                    f"{kind.__name__} (switch adapters before sharding)"
                )


def _check_known(model: nn.Module, name: object) -> None:
    check_choice("adapter", name, adapter_names(model))


def _at_start(target: Target, config: LoRAConfig) -> Adapter:
    options = Options(
        r=target.r,
        alpha=float(target.r) if target.alpha is None else float(target.alpha),
        dropout=config.dropout,
        rslora=config.rslora,
        init=config.init,
    )
    return new_adapter(target.linear.weight, options, check_dtype("adapter_dtype", config.adapter_dtype))
