"""Collects an adapter of a model as it is written: the text of its config, and its tensors, gathered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlora.adapter_files.config_of_model import text_of_config
from fastlora.adapter_files.experts import names_in_files, to_file
from fastlora.adapter_files.full import modules_in_full
from fastlora.adapter_files.given import from_state, is_other
from fastlora.adapter_files.keys import bias_key, layer_keys, plain_key, third_key
from fastlora.layer.adapter import MAGNITUDE, Options
from fastlora.layer.base_weights import adapters_for_original
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from fastlora.layer.lora_conv import CONVOLUTIONS
from fastlora.layer.sharding import is_dtensor, reshard, whole
from fastlora.layer.state import saved_name
from fastlora.layer.writable import check_present
from fastlora.model.biases import biases_of
from fastlora.model.buffers import warn_of_moved
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.modules_to_save import inside
from fastlora.model.switching import adapter_names
from fastlora.model.versions import place_of, state_of


class CollectedAdapter(NamedTuple):
    """An adapter to be written.

    Attributes:
        config: The text of adapter_config.json.
        tensors: {key: full tensor}.
        writes: Whether this process writes it. If the tensors were DTensors, only process 0 does.
    """

    config: str
    tensors: dict[str, Tensor]
    writes: bool


def collect(
    model: nn.Module,
    name: str,
    *,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> CollectedAdapter:
    """One adapter of the model, under the names of PEFT's files.

    Args:
        model: A model with LoRA layers.
        name: The adapter.
        base_model_name_or_path: For the config; None means the name that a Transformers model has.
        task_type: For the config; None means the task that is known of the model.
        state: The values to write instead of the model's own, as `write_next_to_checkpoint` says.

    Raises:
        ValueError: If the model has no such adapter, or another library has put an empty tensor in its place.
    """
    reshard(model)
    found = existing_layers(model)
    layers = {
        path: adapters[name]
        for path, layer in found.items()
        if name in (adapters := adapters_for_original(layer))
    }
    if not layers:
        raise ValueError(f"adapters must be among {', '.join(adapter_names(model))}; got {name!r}")
    in_files = names_in_files({layer: found[layer] for layer in layers})
    tensors, places = _updates(found, layers, in_files, name)
    for path, b in biases_of(model, name).items():
        key = bias_key(path, has_lora=path in layers)
        tensors[key], places[key] = b.detach(), f"{path}.bias".lstrip(".")
    plain = modules_in_full(model)
    warn_of_moved(model, inside(plain.values()))
    for path, module in plain.items():
        for own, value in state_of(module, name).items():
            key = plain_key(f"{path}.{own}".lstrip("."))
            tensors[key] = value.detach()
            places[key] = f"{path}.{place_of(module, own, name)}".lstrip(".")
    text = text_of_config(model, name, found, layers, plain, base_model_name_or_path, task_type)
    sharded = any(is_dtensor(tensor) for tensor in tensors.values())
    if state is not None and (sharded or is_other(state, model, places)):
        given = from_state(state, tensors, places)
        return CollectedAdapter(text, _as_in_files(given, in_files, found), writes=True)
    # Every process does this, in the same order, because gathering is a collective.
    gathered = {key: whole(tensor) for key, tensor in tensors.items()}
    laid_out = _as_in_files(gathered, in_files, found)
    return CollectedAdapter(text, laid_out, writes=not sharded or torch.distributed.get_rank() == 0)


def _updates(
    found: Mapping[str, LoRALayer],
    layers: Mapping[str, tuple[Tensor, Tensor, Options]],
    in_files: Mapping[str, str],
    name: str,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{key in the file: tensor} and {key in the file: key in the model's state} of an adapter's updates.

    Args:
        found: {layer: the layer} of the model.
        layers: {layer: A, B and options} as the file is to have them.
        in_files: {layer: its name in the file}.
        name: The adapter.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for layer, (A, B, options) in layers.items():
        _check_here(found[layer], layer, A, options)
        adapter, own = found[layer].adapters[name], found[layer].place_in_state(layer)
        keys: tuple[str, ...] = layer_keys(
            in_files[layer], embedding=isinstance(found[layer], FusedLoRAEmbedding)
        )
        letters = ["m" if slot == MAGNITUDE else "b" for slot in adapter.slots[2:]]
        keys += tuple(third_key(in_files[layer], letter) for letter in letters)
        values = (A, B, *adapter.current()[2:])
        for key, slot, value in zip(keys, adapter.slots, values, strict=True):
            tensors[key] = value
            places[key] = f"{own}.{saved_name(name, slot)}".lstrip(".")
    return tensors, places


def _as_in_files(
    tensors: dict[str, Tensor], in_files: Mapping[str, str], found: Mapping[str, LoRALayer]
) -> dict[str, Tensor]:
    """The tensors of an adapter with those of experts and convolutions laid out as in PEFT's files."""
    laid_out = dict(tensors)
    for layer, name in in_files.items():
        keys = layer_keys(name)
        if keys[0] not in tensors:  # an embedding's
            continue
        A, B = to_file(*(tensors[key] for key in keys))
        if isinstance(found[layer], CONVOLUTIONS):
            window = found[layer].weight.shape[1:]
            A, B = A.view(-1, *window), B.view(*B.shape, *(1 for _ in window[1:]))
        laid_out.update(zip(keys, (A, B), strict=True))
    return laid_out


def _check_here(module: nn.Module, layer: str, A: Tensor, options: Options) -> None:
    """Raise ValueError if FSDP1, DeepSpeed's ZeRO-3 or accelerate has put an empty tensor in A's place."""
    check_present(module, A, f"A of layer {layer!r}")
    if A.is_meta:
        raise ValueError(f"A of layer {layer!r} must have values to be saved; it is on 'meta'")
    if A.ndim not in (2, 3) or A.shape[-2] != options.r or not A.numel():
        raise ValueError(
            f"A of layer {layer!r} must be [{options.r}, K]; it is {list(A.shape)} (inside FSDP's "
            "summon_full_params or DeepSpeed's GatheredParameters it is whole)"
        )
