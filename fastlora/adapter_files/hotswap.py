"""Replaces the values of an adapter without changing anything that would cause a recompilation."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlora.adapter_files import fit
from fastlora.adapter_files.contents import Contents
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.experts import from_file, known_names, name_layers
from fastlora.adapter_files.keys import third_key
from fastlora.adapter_files.opening import open_directory
from fastlora.adapter_files.renamed import fit_names
from fastlora.arguments import check_choice, check_path
from fastlora.layer.adapter import DEFAULT
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.magnitude import row_norms
from fastlora.layer.sharding import local, part_of, reshard
from fastlora.layer.writable import check_own_writable
from fastlora.model.biases import kind_of
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.name_matching import listed
from fastlora.model.switching import adapter_names
from fastlora.model.token_rows import token_rows


class _Values(NamedTuple):
    """The new values A and B of one layer, and the parameters `own_A` and `own_B` that take them."""

    own_A: Tensor
    own_B: Tensor
    A: Tensor
    B: Tensor


@exclusive
@torch.no_grad()
def hot_swap(model: nn.Module, directory: str | os.PathLike[str], *, name: str = DEFAULT) -> None:
    """Copy the values of an adapter on disk into an adapter of the model, without recompilation.

    Shapes, dtypes and the scaling s stay the same, because compiled code takes them to be constant. A smaller
    rank is padded with zeros. B is multiplied by the ratio of the two scalings; this rounds once, unless the
    ratio is a power of two. The update of a layer that the adapter on disk does not have becomes zero.

    Args:
        model: A model with LoRA layers.
        directory: The adapter on disk, as `load_pretrained` takes it.
        name: The adapter of the model that takes the values; it need not be in use.

    Raises:
        AdapterError: As by `load_pretrained`; or if the adapter on disk has more layers, a larger rank or
            modules to save, one of the two trains biases, or the model has rows of tokens. The model is then
            unchanged.
        TypeError: If `model` is not an nn.Module, or `directory` is no path.
        ValueError: If there is no LoRA layer, or no such adapter, or A or B cannot be written in place.
        OSError: If a file cannot be opened.
    """
    reshard(model)
    adapted = existing_layers(model)
    check_choice("name", name, adapter_names(model))
    check_path("directory", directory)
    layers = fit.layers_with(adapted, name)
    fit.check_unmerged(layers, name)
    fit.check_not_on_meta(layers, name)
    with open_directory(directory) as contents:
        fit_names(model, contents, known_names(model))
        name_layers(model, contents)
        if contents.plain:
            raise AdapterError(
                f"modules_to_save must be empty to be swapped in; got {next(iter(contents.plain))!r}"
            )
        if contents.biases or kind_of(model, name) != contents.config.bias:
            raise AdapterError(
                f"biases cannot be swapped in; the file has bias={contents.config.bias!r}, the model's "
                f"adapter {kind_of(model, name)!r}"
            )
        if rows := [path for path, _, _ in token_rows(model)]:
            raise AdapterError(f"no adapter can be swapped in beside rows of tokens; {listed(rows)} has some")
        further = [path for path in contents.names if path not in layers]
        if further:
            raise AdapterError(f"must have no layers but the adapter's; it has {listed(further)} too")
        values = [_values(contents, path, layer, name) for path, layer in layers.items()]
        thirds = [_third(contents, path, layer, name) for path, layer in layers.items()]
    for path, layer in layers.items():
        check_own_writable(layer.adapters[name], layer.adapters[name].slots, f"layer {path!r}")
    writes: list[tuple[Tensor, Tensor]] = [
        (own, part_of(values, own)) for pair in thirds if pair is not None for own, values in [pair]
    ]
    for own_A, own_B, A, B in values:
        padded_A = F.pad(A, (0, 0, 0, own_A.shape[-2] - A.shape[-2]))
        padded_B = F.pad(B, (0, own_B.shape[-1] - B.shape[-1]))
        writes += [(own_A, part_of(padded_A, own_A)), (own_B, part_of(padded_B, own_B))]
    with commit() as changing:
        for own, part in writes:
            changing.write(local(own), part)


def _third(contents: Contents, path: str, layer: LoRALayer, name: str) -> tuple[nn.Parameter, Tensor] | None:
    """DoRA's m or B's bias of a layer, and its new values; None of plain LoRA.

    Where the file lacks the layer they are W's norms, or zero.
    """
    adapter = layer.adapters[name]
    for key, own, its in (
        ("use_dora", adapter.dora, contents.config.dora),
        ("lora_bias", adapter.lora_bias, contents.config.lora_bias),
    ):
        if own != its:
            raise AdapterError(f"{key} must be {own}, as {path!r} has it; it is {its}")
    if adapter.dora:
        m = adapter.lora_magnitude_vector
        if path not in contents.layers:
            return m, row_norms(layer).to(m.dtype)
        return m, contents.file.read(third_key(path, "m"), m.device, m.dtype)
    if not adapter.lora_bias:
        return None
    b_B = adapter.lora_B_bias
    if path not in contents.layers:
        return b_B, torch.zeros_like(b_B)
    header = contents.layers[path]
    wide = torch.promote_types(header.dtype, torch.float32)
    values = contents.file.read(third_key(path, "b"), b_B.device, wide)
    return b_B, (values * (header.options.scaling / adapter.scaling)).to(b_B.dtype)


def _values(contents: Contents, path: str, layer: LoRALayer, name: str) -> _Values:
    own = layer.adapters[name]
    own_A, own_B = own.lora_A, own.lora_B
    if path not in contents.layers:
        zeros = (torch.zeros(each.shape, dtype=each.dtype, device=each.device) for each in (own_A, own_B))
        return _Values(own_A, own_B, *zeros)
    header = contents.layers[path]
    N, K, experts = layer.out_features, layer.in_features, getattr(layer, "num_experts", 0)
    fits = (header.out_features, header.in_features, header.experts) == (N, K, experts)
    if not fits or header.options.r > own.r:
        raise AdapterError(
            f"{path!r} must have r <= {own.r} and [N, K] = [{N}, {K}]; the file has r = {header.options.r} "
            f"and [{header.out_features}, {header.in_features}]"
        )
    if own.scaling == 0:
        raise AdapterError(f"{path!r} must have a scaling other than 0 for B to take the ratio")
    key_A, key_B = contents.keys_of(path)
    wide = torch.promote_types(header.dtype, torch.float32)
    A = contents.file.read(key_A, own_A.device, own_A.dtype)
    B = contents.file.read(key_B, own_B.device, wide) * (header.options.scaling / own.scaling)
    A, B = from_file(A.flatten(1), B.flatten(1), experts)
    if not (B := B.to(own_B.dtype)).isfinite().all():
        raise AdapterError(f"B of {path!r} must be finite in {own_B.dtype} once scaled")
    return _Values(own_A, own_B, A, B)
