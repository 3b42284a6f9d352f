"""Which adapters a model has, which of them is in use, and putting another in use.

A switch changes references and requires_grad; no tensor moves (see layer/active_adapter.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import cast

from torch import Tensor, nn

from fastlora.arguments import check_choice
from fastlora.layer.active_adapter import check_switchable, name_in_use, switch
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.sharding import reshard
from fastlora.model.biases import biases_in_use, train_biases
from fastlora.model.ddp import note_change
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.modules_to_save import saved_modules
from fastlora.model.name_matching import listed
from fastlora.model.versions import switch_versions


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters of a model, the one in use first.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If there is no LoRA layer.
    """
    layers = existing_layers(model).values()
    found = dict.fromkeys(name for layer in layers for name in layer.adapters)
    in_use = name_in_use(layers)
    return tuple(sorted(found, key=lambda name: name != in_use))


def active_adapter(model: nn.Module) -> str:
    """The adapter in use.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If there is no LoRA layer, or layers have different ones in use.
    """
    return cast(str, name_in_use(existing_layers(model).values()))


def check_known(model: nn.Module, name: object) -> None:
    """Raise unless the model has an adapter of this name."""
    check_choice("adapter", name, adapter_names(model))


@exclusive
def set_adapter(model: nn.Module, name: str) -> None:
    """Put an adapter in use, and its version of each module to save; the previous one is frozen.

    Biases that the previous one trained are frozen as they are, as they are the model's.

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
    check_known(model, name)
    reshard(model)
    _check_switchable(layers, name)
    with commit() as changing:
        note_change(model, changing)
        for b in biases_in_use(model).values() if name != active_adapter(model) else ():
            changing.freeze(b)
        for layer in layers.values():
            switch(layer, name, changing)
        switch_versions(model, name, changing)
        train_biases(model, changing)


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
    """The parameters of the adapter in use, its biases and its modules to save, and their gradients."""
    adapters = (layer.active for layer in existing_layers(model).values() if layer.active is not None)
    own = chain(adapters, (module for _, module in saved_modules(model)))
    parameters = chain(biases_in_use(model).values(), *(module.parameters() for module in own))
    return [(p, p.grad) for p in parameters if p.grad is not None]


@exclusive
def _put_back(model: nn.Module, name: str, gradients: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    if active_adapter(model) == name:
        return
    with commit() as changing:
        set_adapter(model, name)
        for parameter, gradient in gradients:
            if parameter.grad is None and parameter.requires_grad:
                changing.assign(parameter, "grad", gradient)


def _check_switchable(layers: Mapping[str, LoRALayer], adapter: str) -> None:
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"layers must be unmerged to switch adapters; merged: {listed(merged)} (unmerge_lora)"
        )
    for name, layer in layers.items():
        check_switchable(layer, adapter, f"layer {name!r}")
