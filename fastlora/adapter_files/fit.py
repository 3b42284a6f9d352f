"""Finds the layers and modules of a model that an adapter on disk belongs to, by names and shapes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlora.adapter_files.contents import Contents, LayerHeader
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.experts import places_by_name, shape_of
from fastlora.adapter_files.keys import ROWS, plain_key
from fastlora.arguments import adapter_dtype_over
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.experts.stacks import Stack, check_stack
from fastlora.layer.base_weights import check_original_weights, stored_weight
from fastlora.layer.token_rows import CHILD, TokenRows
from fastlora.model.experts_targets import Place
from fastlora.model.find_layers import LORA_LAYERS, LoRALayer
from fastlora.model.modules_to_save import check_trainable, inside, saved_modules
from fastlora.model.name_matching import listed, near_names
from fastlora.model.targets import check_adaptable
from fastlora.model.token_rows import Found, find_rows, token_rows, with_rows
from fastlora.model.versions import state_of
from fastlora.model.wrappers import compiled_modules, modules_by_name


class FoundModules(NamedTuple):
    """An adapter's modules to save, as found in a model.

    Attributes:
        modules: {path: module}.
        tensors: {key in the file: the model's tensor of that name, of the adapter in use}.
        rows: Rows of tokens, which are among the modules; the model may not have them yet.
    """

    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    rows: list[Found]

    def of(self, adapter: str) -> dict[str, Tensor]:
        """{key in the file: the tensor of an adapter's version that takes its value}."""
        return {
            f"{path}.{key}".lstrip("."): tensor
            for path, module in self.modules.items()
            for key, tensor in state_of(module, adapter).items()
        }


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
        except TypeError as error:
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
        _check_shape(path, shape_of(found[path]), _sizes(header), "[N, K]")
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
        _check_shape(path, wanted, [header.options.r, *_sizes(header)], "[r, N, K]")
    check_unmerged(own, name)
    return own


def layers_with(adapted: Mapping[str, LoRALayer], name: str) -> dict[str, LoRALayer]:
    """{path in files: layer} of the layers that have A and B for an adapter."""
    return {path: layer for path, layer in adapted.items() if name in layer.adapters}


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


def modules_to_save(model: nn.Module, contents: Contents) -> FoundModules:
    """The modules of a model that are saved with an adapter, and their tensors.

    If the model has modules to save already, they must be the same ones.

    Raises:
        AdapterError: If there is no such module or tensor, shapes or kinds of dtype differ, a tensor is
            missing, or a module cannot be trained separately from the rest.
    """
    modules = modules_by_name(model)
    paths: list[str] = []
    plain = {key: header for key, header in contents.plain.items() if not key.endswith(ROWS)}
    for key in plain:
        path = _saved_path(key, contents.config.modules_to_save, modules)
        if path not in paths:
            paths.append(path)
    for path, layer in itertools.product(paths, contents.names):
        if f"{layer}.".startswith(f"{path}."):
            raise AdapterError(f"{path!r} must have no LoRA layers, as it is trained in full; got {layer!r}")
    known = [path for path, module in saved_modules(model) if not isinstance(module, TokenRows)]
    if known and paths and set(known) != set(paths):
        raise AdapterError(
            f"modules_to_save must be the model's, {listed(known)}; the file has {listed(paths)}"
        )
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            check_trainable(model, path, modules[path])
        except ValueError as error:
            raise AdapterError(str(error)) from error
        for key, tensor in state_of(modules[path], "").items():
            tensors[f"{path}.{key}".lstrip(".")] = tensor
    missing = [key for key in tensors if key not in plain]
    if missing:
        raise AdapterError(f"modules_to_save must be whole; the file lacks {listed(missing)}")
    rows = _rows(model, contents)
    found = {path: modules[path] for path in paths}
    for path, each in rows.items():
        tensors[f"{path}{ROWS}"] = each.rows.trainable_tokens_delta
        found[f"{path}.{CHILD}"] = each.rows
    for key, header in contents.plain.items():
        if key not in tensors:
            raise AdapterError(f"modules_to_save must hold the model's tensors alone; {key!r} is none")
        _check_shape(key, list(tensors[key].shape), list(header.shape), "shape")
        if tensors[key].is_floating_point() != header.dtype.is_floating_point:
            raise AdapterError(f"{key!r} must be of the kind of {tensors[key].dtype}; it is {header.dtype}")
    return FoundModules(found, tensors, list(rows.values()))


def _rows(model: nn.Module, contents: Contents) -> dict[str, Found]:
    """{path: rows that the file has}, of which the model need have none yet."""
    found: dict[str, Found] = {}
    trained = inside(each for _, each in saved_modules(model) if not isinstance(each, TokenRows))
    for path, tokens in contents.tokens.items():
        dtype = adapter_dtype_over(contents.plain[f"{path}{ROWS}"].dtype)
        try:
            (found[path],) = find_rows(model, {path: tokens}, dtype, trained)
        except (TypeError, ValueError) as error:
            raise AdapterError(str(error)) from error
    taken, modules = with_rows(model, list(found.values())), modules_by_name(model)
    if both := [layer for layer in contents.names if modules.get(layer) in taken]:
        raise AdapterError(f"LoRA and rows of tokens must not be of one weight; both are of {listed(both)}")
    return found


def check_rows(model: nn.Module, contents: Contents) -> None:
    """Raise AdapterError if a file lacks rows of tokens that an adapter to be filled has."""
    if lacking := [name for name, _, _ in token_rows(model) if name not in contents.tokens]:
        raise AdapterError(f"must hold the rows of tokens of {listed(lacking)}, as the model's adapter does")


def _saved_path(key: str, names: tuple[str, ...], modules: Mapping[str, nn.Module]) -> str:
    """The outermost module that holds the tensor and that one of the names matches, by PEFT's rule."""
    parts = key.split(".")
    for length in range(len(parts)):
        path = ".".join(parts[:length])
        if path in modules and any(path.endswith(name) for name in names):
            return path
    near = near_names(key, modules)
    raise AdapterError(f"{key!r} must belong to a module that modules_to_save names, {listed(names)}{near}")


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
        if isinstance(layer, nn.Embedding) != (path in contents.embeddings):
            kind = "an embedding" if path in contents.embeddings else "a linear layer"
            raise AdapterError(f"{path!r} must be {kind}, as in the file; it is a {type(layer).__name__}")


def check_base(model: nn.Module, contents: Contents) -> None:
    """Raise AdapterError if the file holds another W of an embedding than the model's.

    PEFT writes the W of embeddings that have LoRA, and of the output layer, beside A and B.
    """
    own = {name.replace(".base_layer.", "."): name for name in contents.base}
    tensors = {
        f"{path}.{key}".lstrip("."): value
        for path, module in modules_by_name(model).items()
        for key, value in module._parameters.items()
        if value is not None
    }
    for name, saved_as in own.items():
        wanted = tensors.get(name)
        found = None
        if wanted is not None and contents.file.headers[plain_key(saved_as)].shape == tuple(wanted.shape):
            found = contents.file.read(plain_key(saved_as), wanted.device, wanted.dtype)
        if wanted is None or found is None or not torch.equal(found, wanted):
            raise AdapterError(
                f"{saved_as!r} must be the model's own, as PEFT writes it beside LoRA on an embedding; it "
                "differs (the embedding was resized or trained: name its module in modules_to_save)"
            )


def _check_shape(name: str, wanted: list[int], found: list[int], what: str) -> None:
    if found != wanted:
        raise AdapterError(f"{name!r} must have {what} = {wanted}; the file has {found}")
