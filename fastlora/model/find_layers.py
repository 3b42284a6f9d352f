"""Finds the LoRA layers of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from torch import nn

from fastlora.experts.layer import FusedLoRAExperts
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.lora_conv import LoRAConv
from fastlora.model.name_matching import listed
from fastlora.model.wrappers import module_names

LoRALayer: TypeAlias = FusedLoRALinear | FusedLoRAEmbedding | LoRAConv | FusedLoRAExperts
LORA_LAYERS: Final = (FusedLoRALinear, FusedLoRAEmbedding, LoRAConv, FusedLoRAExperts)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """(name, layer) of each LoRA layer; one registered under several names comes once, under the first.

    Wrappers (of torch.compile, DistributedDataParallel and the like) do not appear in the names. A stack of
    experts' weights is a layer of its own, a FusedLoRAExperts, with the parameter's name.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    check_model(model)
    return (
        (own[0], module) for module, own in module_names(model).items() if isinstance(module, LORA_LAYERS)
    )


def existing_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """`lora_layers` as a dict; ValueError if there are none, TypeError as there."""
    layers = dict(lora_layers(model))
    if not layers:
        raise ValueError(
            f"model must have LoRA layers; this {type(model).__name__} has none (see apply_lora)"
        )
    return layers


def check_model(model: object) -> None:
    """Raise TypeError unless it is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")


def check_outside_batches(layers: Mapping[str, LoRALayer]) -> None:
    """Raise ValueError, naming the layers, if some are inside `adapter_batch`."""
    mixing = [name for name, layer in layers.items() if layer.in_batch]
    if mixing:
        raise ValueError(
            f"adapters must be added and deleted outside adapter_batch; inside it are: {listed(mixing)}"
        )
