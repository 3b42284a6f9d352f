"""Reading adapters that PEFT or fastlora wrote into a model; all is checked before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlora.adapters import adapter_names, give_adapter
from fastlora.layer import FusedLoRALinear
from fastlora.layers import lora_layers
from fastlora.model import freeze, make_layers
from fastlora.pretrained import fit
from fastlora.pretrained.contents import Contents, layer_keys, open_directory, open_file, plain_key
from fastlora.pretrained.errors import AdapterError
from fastlora.replace import replace_modules
from fastlora.saved import mark
from fastlora.shards import fill, reshard, whole
from fastlora.shelf import DEFAULT, Adapter, Options, adapters_of, check_name, shelf_of
from fastlora.wrappers import modules_by_name


def load_pretrained(model: nn.Module, directory: str | os.PathLike[str], *, name: str = DEFAULT) -> nn.Module:
    """Read an adapter that PEFT's or our `save_pretrained` wrote into a model, in place.

    Into a model without LoRA, the layers are made as the adapter says, in its dtype, and all but the updates
    and the modules to save is frozen, as by `apply_lora`. In a model with LoRA an adapter of a new name is
    added and not put in use (see `set_adapter`). An adapter that the model has already must have the same
    layers and shapes: A and B are converted to its dtype and copied into its parameters, alpha and rslora
    come from the file, while dropout and what is trainable stay.

    Nothing but adapter_config.json and adapter_model.safetensors is read, and shapes are checked before any
    tensor is.

    Args:
        model: The model; it may itself be a plain nn.Linear.
        directory: The directory; for a named adapter, its sub-directory.
        name: What the adapter is called in this model.

    Returns:
        The model; the new layer where the model itself is a plain nn.Linear.

    Raises:
        AdapterError: If the files are truncated, damaged or foreign; hold what is not plain LoRA on linear
            layers (the key is named); do not fit the model; or hold NaN or infinity, also after conversion;
            or if a layer is merged. The model is as it was.
        ValueError: If the name is unsound.
        ImportError: If safetensors is not installed.
        OSError: If a file cannot be opened.
    """
    check_name(name)
    with open_directory(directory) as contents:
        return _load(model, contents, name)


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, name: str = DEFAULT) -> nn.Module:
    """Read the file of `save_adapter` into a model, in place, as `load_pretrained` reads a directory.

    Args:
        model: As in `load_pretrained`.
        path: The file.
        name: What the adapter is called in this model.

    Returns:
        The model; the new layer where the model itself is a plain nn.Linear.

    Raises:
        AdapterError: As in `load_pretrained`.
        ValueError: If the name is unsound.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be opened.
    """
    check_name(name)
    with open_file(path) as contents:
        return _load(model, contents, name)


def _load(model: nn.Module, contents: Contents, name: str) -> nn.Module:
    """Read all, then change the model."""
    reshard(model)
    adapted = dict(lora_layers(model))
    known = bool(adapted) and name in adapter_names(model)
    layers: Mapping[str, nn.Linear]
    layers = fit.same_layers(adapted, contents, name) if known else fit.targets(model, contents)
    saved = fit.modules_to_save(model, contents)
    updates = {path: _read_update(contents, path, layer, name) for path, layer in layers.items()}
    plain = {
        key: contents.file.read(plain_key(key), tensor.device, tensor.dtype)
        for key, tensor in saved.tensors.items()
    }
    if adapted and not known:
        _check_shared(saved, plain)
    if not known:
        model = _add(model, name, layers, updates)
        modules = modules_by_name(model)
        layers = {path: cast(nn.Linear, modules[path]) for path in layers}
    with torch.no_grad():
        for path, layer in layers.items():
            refill(cast(FusedLoRALinear, layer), name, *updates[path])
        for key, tensor in saved.tensors.items():
            fill(tensor, plain[key])
    if not adapted:
        mark(saved.modules)
        freeze(model)
    return model


def refill(layer: FusedLoRALinear, name: str, A: Tensor, B: Tensor, options: Options) -> None:
    """Copy A and B into an adapter of a layer; alpha and rslora are taken over, the rest stays."""
    own_A, own_B, _ = adapters_of(layer)[name]
    fill(own_A, A)
    fill(own_B, B)
    if layer.adapter == name:
        layer.alpha, layer.rslora = options.alpha, options.rslora
    else:
        kept = shelf_of(layer)[name]
        kept.options = kept.options._replace(alpha=options.alpha, rslora=options.rslora)


def _read_update(
    contents: Contents, path: str, layer: nn.Linear, name: str
) -> tuple[Tensor, Tensor, Options]:
    """A and B in the dtype of the adapter that the layer has, else in the file's."""
    header = contents.layers[path]
    own = adapters_of(layer) if isinstance(layer, FusedLoRALinear) else {}
    dtype = own[name][0].dtype if name in own else header.dtype
    A, B = (contents.file.read(key, layer.weight.device, dtype) for key in layer_keys(path))
    return A, B, header.options


def _check_shared(saved: fit.Saved, plain: Mapping[str, Tensor]) -> None:
    """Raise AdapterError where a further adapter brings other values for a module that all adapters share."""
    for key, tensor in saved.tensors.items():
        if not torch.equal(whole(tensor), plain[key]):
            raise AdapterError(
                "modules_to_save of a further adapter must be the model's own, as they are trained in place "
                f"for all adapters; {key!r} differs"
            )


def _add(
    model: nn.Module,
    name: str,
    layers: Mapping[str, nn.Linear],
    updates: Mapping[str, tuple[Tensor, Tensor, Options]],
) -> nn.Module:
    """Give the layers an adapter of the right kind, its values not filled in yet."""
    plain: dict[nn.Linear, dict[str, Any]] = {}
    made: dict[FusedLoRALinear, Adapter] = {}
    for path, layer in layers.items():
        A, B, options = updates[path]
        if isinstance(layer, FusedLoRALinear):
            made[layer] = Adapter(nn.Parameter(A), nn.Parameter(B), options)
        else:
            plain[layer] = {**options._asdict(), "adapter_dtype": A.dtype}
    if any(True for _ in lora_layers(model)):
        return give_adapter(model, name, made, plain)
    return replace_modules(model, make_layers(model, plain, name).items())
