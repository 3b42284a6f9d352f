"""Finds the layers of a model that an adapter on disk belongs to, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastlora.adapter_files.contents import Contents, LayerHeader
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.experts import places_by_name, shape_of
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.experts.stacks import Stack, check_stack
from fastlora.layer.base_weights import check_original_weights, stored_weight
from fastlora.layer.lora_conv import CONVOLUTIONS
from fastlora.model.experts_targets import Place
from fastlora.model.find_layers import LORA_LAYERS, LoRALayer
from fastlora.model.name_matching import listed, near_names
from fastlora.model.targets import check_adaptable
from fastlora.model.wrappers import compiled_modules, modules_by_name


def targets(model: nn.Module, contents: Contents) -> dict[str, Any]:
    """The layers of a model that a new adapter is for. They may be plain or have LoRA already.

    Experts without LoRA are a `Stack` of their weights.

    Raises:
        AdapterError: If a layer does not exist, is of another kind or shape, or is shared by two names.
    """
    places, compiled = places_by_name(model), compiled_modules(model)
    found: dict[str, Any] = {}
    for path in contents.names:
        found[path] = place = _existing(places, path)
        try:
            if isinstance(place, Stack):
                check_stack(f"target {path!r}", place)
            elif not isinstance(place, LORA_LAYERS):
                check_adaptable(path, place, compiled)
        except (TypeError, ValueError) as error:
            raise AdapterError(str(error)) from error
    _check_original_weights({path: layer for path, layer in found.items() if isinstance(layer, LORA_LAYERS)})
    if contents.config.ties:
        _check_untied(model, found)
    if len(set(found.values())) < len(found):
        raise AdapterError(
            "its layers must be modules of their own; some are one shared module in this model"
        )
    _check_kinds(found, contents)
    for path, header in contents.layers.items():
        check_shape(path, shape_of(found[path]), _sizes(header), "[N, K]")
    return found


def same_layers(adapted: Mapping[str, LoRALayer], contents: Contents, name: str) -> dict[str, LoRALayer]:
    """The layers of an adapter that the model has already, checked to be the file's layers.

    Raises:
        AdapterError: If layers or shapes differ, or the adapter is in use and merged.
    """
    own = layers_with(adapted, name)
    missing = [path for path in own if path not in contents.names]
    if missing:
        raise AdapterError(f"must hold every LoRA layer of the model; it lacks {listed(missing)}")
    for path in contents.names:
        if path not in own:
            near = near_names(path, own)
            raise AdapterError(f"must hold the model's LoRA layers alone; it holds {path!r} too{near}")
    _check_kinds(own, contents)
    for path, header in contents.layers.items():
        adapter = own[path].adapters[name]
        for key, field in (("use_dora", "dora"), ("lora_bias", "lora_bias")):
            has, its = getattr(adapter, field), getattr(header.options, field)
            if has != its:
                raise AdapterError(
                    f"{key} must be {has}, as adapter {name!r} of the model has it; the file has {its}"
                )
        wanted = [adapter.r, *shape_of(own[path])]
        check_shape(path, wanted, [header.options.r, *_sizes(header)], "[r, N, K]")
    check_unmerged(own, name)
    return own


def layers_with(adapted: Mapping[str, LoRALayer], name: str) -> dict[str, LoRALayer]:
    """{path in files: layer} of the layers that have A and B for an adapter."""
    return {path: layer for path, layer in adapted.items() if name in layer.adapters}


def check_not_on_meta(
    layers: Mapping[str, Any], name: str, plain: Mapping[str, Tensor] | None = None
) -> None:
    """Raise AdapterError if values for these layers, or for `plain`, would be lost on "meta"."""
    takes: dict[str, Any] = dict(plain or {})
    for path, layer in layers.items():
        own: Any = layer.adapters if isinstance(layer, LORA_LAYERS) else {}
        takes[path] = own[name].lora_A if name in own else stored_weight(layer)
    if lost := [path for path, tensor in takes.items() if tensor.is_meta]:
        raise AdapterError(
            f"its layers must have values in the model; on 'meta', where values are lost, are {listed(lost)} "
            "(load the model's values first; to_empty and reset_parameters give adapters theirs)"
        )


def check_unmerged(layers: Mapping[str, LoRALayer], name: str) -> None:
    """Raise AdapterError if an adapter to be changed is merged into W, or was initialized from W."""
    _check_original_weights(layers)
    merged = [path for path, layer in layers.items() if layer.adapter == name and layer.merged]
    if merged:
        raise AdapterError(f"layers must be unmerged before loading; merged: {listed(merged)} (unmerge_lora)")


def _check_original_weights(layers: Mapping[str, LoRALayer]) -> None:
    try:
        check_original_weights(layers, "adapters in files are made for the W from before")
    except ValueError as error:
        raise AdapterError(str(error)) from error


def _check_untied(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Raise AdapterError if a weight is shared with another module: PEFT would adapt that one too."""
    owners: dict[int, list[str]] = {}
    for name, module in modules_by_name(model).items():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(name)
    for path, layer in layers.items():
        if isinstance(layer, (Stack, FusedLoRAExperts)):
            continue  # PEFT ties linear layers and embeddings alone
        others = [name for name in owners[id(stored_weight(layer))] if name != path]
        if others:
            raise AdapterError(
                f"ensure_weight_tying is not supported where a layer with LoRA is tied; {path!r} shares its "
                f"weight with {listed(others)} (merge the adapter with PEFT)"
            )


def _existing(places: Mapping[str, Place], path: str) -> Place:
    if path not in places:
        raise AdapterError(f"its layers must be the model's; there is no {path!r}{near_names(path, places)}")
    return places[path]


def _sizes(header: LayerHeader) -> list[int]:
    """[N, K], or [E, N, K] of experts."""
    return [header.experts] * bool(header.experts) + [header.out_features, header.in_features]


def _check_kinds(layers: Mapping[str, Any], contents: Contents) -> None:
    """Raise AdapterError where one of file and model has an embedding and the other a linear layer."""
    for path, layer in layers.items():
        own = tuple(layer.weight.shape[1:]) if isinstance(layer, CONVOLUTIONS) else ()
        if (window := contents.layers[path].window) != own:
            raise AdapterError(
                f"{path!r} must have [in_channels, *kernel] = {list(own)}; the file has {list(window)}"
            )
        if isinstance(layer, nn.Embedding) != (path in contents.embeddings):
            kind = "an embedding" if path in contents.embeddings else "a linear layer"
            raise AdapterError(f"{path!r} must be {kind}, as in the file; it is a {type(layer).__name__}")


def check_shape(name: str, wanted: list[int], found: list[int], what: str) -> None:
    """Raise AdapterError unless the file has the model's sizes of a layer or tensor."""
    if found != wanted:
        raise AdapterError(f"{name!r} must have {what} = {wanted}; the file has {found}")
