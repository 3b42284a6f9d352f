"""Merging a model: adding updates to its weights, and restoring the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fastlora.layer.base_weights import packed_format
from fastlora.layer.commits import Commit, commit, exclusive
from fastlora.layer.sharding import all_finite, reshard
from fastlora.layer.shared_weights import check_unshared_elsewhere, memory_of, put_values
from fastlora.layer.writable import check_own_writable
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.wrappers import module_names


@exclusive
def merge_lora(model: nn.Module) -> None:
    """Add every update to its weight (`FusedLoRALinear.merge`); `unmerge_lora` restores each bit for bit.

    For this, a copy of each W is kept. If parameters are DTensors, all processes must call it; each changes
    its shard. Either all layers are merged or, on an error, no further layer is.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If there is no LoRA layer, or a weight is packed, is shared with another module, would not
            be finite, is computed from other tensors (by a parametrization, say) or cannot be written in
            place.
    """
    layers = existing_layers(model)
    reshard(model)
    check_plain(layers, "merge_lora", "remove_lora(model, merge=True) gives plain layers with W + s B A")
    check_mergeable(model, layers)
    todo = [layer for layer in layers.values() if not layer.merged]
    try:
        for layer in todo:
            layer._merge()
    except BaseException:
        _unmerge(todo)
        raise


@exclusive
def unmerge_lora(model: nn.Module) -> None:
    """Restore every W, bit for bit (`FusedLoRALinear.unmerge`).

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If there is no LoRA layer, or a weight cannot be written in place any more.
    """
    layers = existing_layers(model)
    reshard(model)
    for name, layer in layers.items():
        if layer.merged:
            layer._check_restorable(f"layer {name!r}")
    _unmerge(layers.values())


def _unmerge(layers: Iterable[LoRALayer]) -> None:
    with commit() as changing:
        for layer in layers:
            changing.then(layer._put_back)


def fold(layer: LoRALayer, total: Callable[[], Tensor], changing: Commit) -> None:
    """Set W to `total()` at the end of a commit, so that only one layer's sum is in memory at a time."""
    given: list[Tensor] = []
    done = False

    @torch.no_grad()
    def step() -> None:
        nonlocal done
        if done:
            return
        if not given:
            given.append(total())
        put_values(layer.weight, given[0])
        layer._base_weight = None
        done = True
        given.clear()

    changing.then(step)


def check_mergeable(model: nn.Module, layers: Mapping[str, LoRALayer]) -> None:
    """Raise ValueError, naming the layer, if one cannot be merged.

    W must be a writable parameter of the layer and not shared with another module; A and B must be finite.
    """
    for name, layer in layers.items():
        # A packed W is not written, as another layer takes its place; a merged one is there already.
        if packed_format(layer) is None and not layer.merged:
            check_own_writable(layer.keeper[0], layer.keeper[1:], f"layer {name!r}")
        active = layer.active
        if active is None or active.lora_A.is_meta:
            continue
        if not all(map(all_finite, active.parameters())):
            raise ValueError(
                f"A and B of layer {name!r} must be finite to be merged; they hold NaN or infinity"
            )
    whole = {name: layer for name, layer in layers.items() if packed_format(layer) is None}
    check_unshared(model, whole, "merged", "leave it unmerged")


def check_plain(layers: Mapping[str, LoRALayer], by: str, instead: str) -> None:
    """Raise ValueError, naming the layer, if the W of one is packed, so that `by` cannot write it."""
    for name, layer in layers.items():
        if (format := packed_format(layer)) is not None:
            raise ValueError(
                f"W of layer {name!r} must be plain for {by}; it is packed as {format.about}, and packing "
                f"anything else anew would change it by more than an update does ({instead})"
            )


def check_unshared(model: nn.Module, layers: Mapping[str, LoRALayer], to_be: str, otherwise: str) -> None:
    """Raise ValueError, naming the layer, if changing its W would change another module."""
    owners: dict[object, list[str]] = {}
    for module, (name, *_) in module_names(model).items():
        for kind, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(memory_of(parameter), []).append(f"{name}.{kind}".lstrip("."))
    for name, layer in layers.items():
        users = owners[memory_of(layer.weight)]
        if len(users) > 1:
            raise ValueError(
                f"{name}.weight must belong to this layer alone to be {to_be}; it is shared by "
                f"{', '.join(users)} (give the layer a weight of its own first, or {otherwise})"
            )
    check_unshared_elsewhere(layers.values(), to_be)
