"""Loads adapters written by PEFT or fastlora into a model. All is checked before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fastlora.adapter_files import fit, fit_modules
from fastlora.adapter_files.contents import Contents
from fastlora.adapter_files.experts import from_file, known_names, name_layers
from fastlora.adapter_files.keys import ROWS, plain_key, third_key
from fastlora.adapter_files.opening import open_directory, open_file
from fastlora.adapter_files.renamed import fit_names
from fastlora.arguments import adapter_dtype_over, check_path
from fastlora.layer.adapter import DEFAULT, Adapter, Options
from fastlora.layer.adapter_name import check_name
from fastlora.layer.base_weights import stored_weight
from fastlora.layer.commits import Commit, commit, exclusive
from fastlora.layer.sharding import local, part_of, reshard
from fastlora.layer.writable import check_own_writable, check_writable
from fastlora.model import buffers, transformers_saving
from fastlora.model.adapters import give_adapter
from fastlora.model.apply import make_layers
from fastlora.model.biases import give_biases
from fastlora.model.find_layers import LORA_LAYERS, LoRALayer, check_model, lora_layers
from fastlora.model.freezing import freeze
from fastlora.model.modules_to_save import mark, saved_modules
from fastlora.model.replace import replace_modules
from fastlora.model.switching import adapter_names
from fastlora.model.token_rows import put_rows, start_rows


class _Update(NamedTuple):
    """A layer's adapter from a file: its options, and its tensors in the order of `Adapter.slots`."""

    options: Options
    tensors: tuple[Tensor, ...]


_Updates: TypeAlias = Mapping[str, _Update]


def load_pretrained(model: nn.Module, directory: str | os.PathLike[str], *, name: str = DEFAULT) -> nn.Module:
    """Load an adapter that PEFT's or our `save_pretrained` wrote into a model, in place.

    A model without LoRA gets LoRA layers as the adapter's files say, in their dtype (fp32 for 16-bit values,
    as in PEFT). All but the updates and the modules to save is frozen, as by `apply_lora`. In a model with
    LoRA, an adapter with a new name is added but not put in use (see `set_adapter`), with its own version of
    each module to save: the file's, or a copy of the one in use. Biases that it trained become the model's,
    as in PEFT. If the model has an adapter of this name, the file must have the same layers and shapes. Then
    A and B are converted to the adapter's dtype and copied into its parameters. alpha and rslora are taken
    from the file; dropout and what is trainable stay.

    Only adapter_config.json and adapter_model.safetensors are read. All shapes are checked before a tensor is
    read.

    Args:
        model: The model; it may itself be a plain nn.Linear.
        directory: The directory; for a named adapter, its sub-directory.
        name: The adapter's name in this model.

    Returns:
        The model; the new layer if the model itself is a plain nn.Linear.

    Raises:
        AdapterError: If the files are truncated, damaged or foreign; are not plain LoRA on linear layers (the
            message names the key); do not fit the model; or hold NaN or infinity, also after conversion; or
            if a layer is merged. The model is then unchanged.
        TypeError: If `model` is not an nn.Module, or `directory` is no path.
        ValueError: If the name is invalid, or a tensor to be filled cannot be written in place.
        OSError: If a file cannot be opened.
    """
    check_model(model)
    check_name(name)
    check_path("directory", directory)
    with open_directory(directory) as contents:
        return _load(model, contents, name)


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, name: str = DEFAULT) -> nn.Module:
    """Load a file that `save_adapter` wrote into a model, in place, as `load_pretrained` loads a directory.

    Args:
        model: As in `load_pretrained`.
        path: The file.
        name: The adapter's name in this model.

    Returns:
        The model; the new layer if the model itself is a plain nn.Linear.

    Raises:
        AdapterError: As in `load_pretrained`.
        TypeError: If `model` is not an nn.Module, or `path` is no path.
        ValueError: If the name is invalid, or a tensor to be filled cannot be written in place.
        OSError: If the file cannot be opened.
    """
    check_model(model)
    check_name(name)
    check_path("path", path)
    with open_file(path) as contents:
        return _load(model, contents, name)


@exclusive
@torch.no_grad()
def _load(model: nn.Module, contents: Contents, name: str) -> nn.Module:
    """Read everything, then change the model."""
    reshard(model)
    fit_names(model, contents, known_names(model))
    name_layers(model, contents)
    adapted = dict(lora_layers(model))
    known = bool(adapted) and name in adapter_names(model)
    layers: Mapping[str, Any]
    layers = fit.same_layers(adapted, contents, name) if known else fit.targets(model, contents)
    if known:
        for path, layer in layers.items():
            check_own_writable(layer.adapters[name], layer.adapters[name].slots, f"layer {path!r}")
    saved = fit_modules.modules_to_save(model, contents)
    fit.check_not_on_meta(layers, name, saved.tensors)
    fit_modules.check_base(model, contents)
    fit_modules.check_biases(model, contents, name, known)
    if known:
        fit_modules.check_rows(model, contents)
    updates = {path: _read_update(contents, path, layer, name) for path, layer in layers.items()}
    plain = _read_saved(contents, saved)
    refills = _refills(layers, name, updates) if known else []
    new, made = ({}, {}) if known else _made(model, name, layers, updates)
    with commit() as changing:
        put_rows(saved.rows, changing)
        for refill in refills:
            refill.into(changing)
        if adapted and not known:
            trained = [module for _, module in saved_modules(model)]
            first = [module for module in saved.modules.values() if module not in trained]
            model = give_adapter(model, name, made, new, first, contents.config.bias)
            start_rows(model, name, trained=bool(saved.rows))
        elif not adapted:
            model = replace_modules(model, new.items())
        for key, tensor in saved.of(name).items():
            changing.write(local(tensor), part_of(plain[key], tensor))
        if not adapted:
            mark(list(saved.modules.values()), changing)
            give_biases(model, name, contents.config.bias, changing)
            freeze(model)
            buffers.note(model, changing)
            transformers_saving.install(model, changing)
    return model


class _Refill(NamedTuple):
    """New values for an existing adapter; alpha and rslora change too, other options do not."""

    adapter: Adapter
    parts: tuple[Tensor, ...]
    options: Options

    def into(self, changing: Commit) -> None:
        """Copy the values into the adapter, as part of a commit."""
        adapter, parts, options = self
        for slot, part in zip(adapter.slots, parts, strict=True):
            changing.write(local(getattr(adapter, slot)), part)
        changing.put(vars(adapter), "alpha", options.alpha)
        changing.put(vars(adapter), "rslora", options.rslora)


def _read_saved(contents: Contents, saved: fit_modules.FoundModules) -> dict[str, Tensor]:
    """{key in the file: its tensor} of the modules to save, checked to have a place that can be written."""
    plain = {
        key: contents.file.read(plain_key(key), tensor.device, tensor.dtype)
        for key, tensor in saved.tensors.items()
    }
    for path, each in zip(contents.tokens, saved.rows, strict=True):
        order = [contents.tokens[path].index(token) for token in each.rows.tokens]
        plain[f"{path}{ROWS}"] = plain[f"{path}{ROWS}"][order]
    for key, tensor in saved.tensors.items():
        check_writable(tensor, repr(key))
    return plain


def _refills(layers: Mapping[str, Any], name: str, updates: _Updates) -> list[_Refill]:
    refills: list[_Refill] = []
    for path, found in layers.items():
        own = found.adapters[name]
        options, tensors = updates[path]
        slots = (getattr(own, slot) for slot in own.slots)
        parts = tuple(part_of(values, slot) for values, slot in zip(tensors, slots, strict=True))
        refills.append(_Refill(own, parts, options))
    return refills


def _read_update(contents: Contents, path: str, layer: Any, name: str) -> _Update:
    """Tensors in the existing adapter's dtype; else in the dtype of the file's A, or fp32 for 16 bits."""
    header = contents.layers[path]
    dtype = adapter_dtype_over(header.dtype)
    if isinstance(layer, LORA_LAYERS) and name in layer.adapters:
        dtype = layer.adapters[name].lora_A.dtype
    device = stored_weight(layer).device
    A, B = (contents.file.read(key, device, dtype) for key in contents.keys_of(path))
    A, B = from_file(A.flatten(1), B.flatten(1), header.experts)
    if not (letter := contents.config.third):
        return _Update(header.options, (A, B))
    third = contents.file.read(third_key(path, letter), device, dtype)
    return _Update(header.options, (A, B, third))


def _made(
    model: nn.Module, name: str, layers: Mapping[str, Any], updates: _Updates
) -> tuple[dict[Any, LoRALayer], dict[LoRALayer, Adapter]]:
    """({plain layer: its replacement}, {LoRA layer: its new adapter}), not yet in the model."""
    plain: dict[Any, dict[str, Any]] = {}
    made: dict[LoRALayer, Adapter] = {}
    for path, layer in layers.items():
        options, tensors = updates[path]
        if isinstance(layer, LORA_LAYERS):
            with torch.inference_mode(False):
                # A tensor made in inference mode could never be trained.
                own = (nn.Parameter(each.clone() if each.is_inference() else each) for each in tensors)
                A, B, *third = own
                made[layer] = Adapter(A, B, options, *third)
        else:
            plain[layer] = {**options._asdict(), "adapter_dtype": tensors[0].dtype}
    new = make_layers(model, plain, name)
    for path, linear in layers.items():
        if linear in new:
            adapter = new[linear].adapters[name]
            for slot, values in zip(adapter.slots, updates[path].tensors, strict=True):
                getattr(adapter, slot).copy_(values)
    return new, made
