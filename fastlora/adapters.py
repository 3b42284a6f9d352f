"""Saving and loading the LoRA updates of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

import torch
from torch import nn

from fastlora.adapter_file import AdapterError, AdapterFile, Options, open_adapter_file, write_adapter_file
from fastlora.layer import FusedLoRALinear
from fastlora.model import existing_layers, lora_layers, wrap_linears
from fastlora.targets import listed, near_names
from fastlora.twin import check_plain_linear


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write A and B of every LoRA layer, with r, alpha, rslora, dropout and init, to a safetensors file.

    The file appears whole or not at all: it is written under another name in the same directory, flushed to
    the disk and renamed. Merged and disabled layers are saved like any other.

    Args:
        model: A model with LoRA layers; torch.compile's wrapper leaves no trace in the names.
        path: Where to write; an existing file is replaced.

    Raises:
        AdapterError: If A or B holds NaN or infinity: the file could not be loaded.
        ValueError: If there is no LoRA layer.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.
    """
    layers = existing_layers(_uncompiled(model))
    write_adapter_file(
        path,
        {
            name: (
                Options(
                    r=layer.r, alpha=layer.alpha, rslora=layer.rslora, dropout=layer.dropout, init=layer.init
                ),
                layer.lora_A,
                layer.lora_B,
            )
            for name, layer in layers.items()
        },
    )


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Read the file of `save_adapter` into a model, in place.

    Into LoRA layers, the values are converted to each layer's adapter dtype; alpha and rslora come from the
    file, while dropout, `enabled` and what is trainable stay. In a model without any, the layers are made as
    the file says, in the file's dtype, and all but the updates is frozen, as by `apply_lora`. Everything is
    checked before anything is changed, and shapes before any tensor is read.

    Args:
        model: A model with LoRA layers of the same names and shapes, or the plain model.
        path: The file.

    Returns:
        The model; the new layer where the model itself is a plain nn.Linear.

    Raises:
        AdapterError: If the file is truncated, damaged, or not `save_adapter`'s; if its layers or shapes are
            not the model's; if it holds NaN or infinity, also after conversion; or if a layer is merged. The
            model is as it was.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be opened.
    """
    plain = _uncompiled(model)
    adapted = dict(lora_layers(plain))
    with open_adapter_file(path) as file:
        layers: Mapping[str, nn.Linear] = _same_layers(adapted, file) if adapted else _linears(plain, file)
        _check_shapes(layers, file)
        values = {
            name: file.read(name, layer.weight.device, _adapter_dtype(layer, file.headers[name].dtype))
            for name, layer in layers.items()
        }
        headers = file.headers
    if not adapted:
        options = {
            layer: {**asdict(headers[name].options), "adapter_dtype": headers[name].dtype}
            for name, layer in layers.items()
        }
        wrapped = wrap_linears(plain, options)
        model = model if wrapped is plain else wrapped
        adapted = {name: cast(FusedLoRALinear, wrapped.get_submodule(name)) for name in layers}
    with torch.no_grad():
        for name, (A, B) in values.items():
            layer = adapted[name]
            layer.lora_A.copy_(A)
            layer.lora_B.copy_(B)
            layer.alpha, layer.rslora = float(headers[name].options.alpha), headers[name].options.rslora
    return model


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module that torch.compile's wrapper holds; its prefix is no part of a layer's name."""
    return getattr(model, "_orig_mod", model)


def _adapter_dtype(layer: nn.Linear, in_file: torch.dtype) -> torch.dtype:
    return layer.lora_A.dtype if isinstance(layer, FusedLoRALinear) else in_file


def _same_layers(adapted: Mapping[str, FusedLoRALinear], file: AdapterFile) -> Mapping[str, FusedLoRALinear]:
    missing = [name for name in adapted if name not in file.headers]
    if missing:
        raise AdapterError(f"must hold every LoRA layer of the model; it lacks {listed(missing)}")
    for name in file.headers:
        if name not in adapted:
            near = near_names(name, adapted)
            raise AdapterError(f"must hold the model's LoRA layers alone; it holds {name!r} too{near}")
    merged = [name for name, layer in adapted.items() if layer.merged]
    if merged:
        raise AdapterError(f"layers must be unmerged before loading; merged: {listed(merged)} (unmerge_lora)")
    return adapted


def _linears(model: nn.Module, file: AdapterFile) -> Mapping[str, nn.Linear]:
    """The plain layers that the file names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    linears: dict[str, nn.Linear] = {}
    for name in file.headers:
        if name not in modules:
            raise AdapterError(
                f"its layers must be the model's; there is no {name!r}{near_names(name, modules)}"
            )
        try:
            check_plain_linear(f"layer {name!r}", modules[name])
        except TypeError as error:
            raise AdapterError(str(error)) from error
        linears[name] = cast(nn.Linear, modules[name])
    if len(set(linears.values())) < len(linears):
        raise AdapterError(
            "its layers must be modules of their own; some are one shared module in this model"
        )
    return linears


def _check_shapes(layers: Mapping[str, nn.Linear], file: AdapterFile) -> None:
    for name, layer in layers.items():
        header = file.headers[name]
        r = layer.r if isinstance(layer, FusedLoRALinear) else header.options.r
        wanted = [r, *layer.weight.shape]
        found = [header.options.r, header.out_features, header.in_features]
        if found != wanted:
            raise AdapterError(f"layer {name!r} must have [r, N, K] = {wanted}; the file has {found}")
