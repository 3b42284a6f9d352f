"""Updates added into the weights of a model, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fastlora.layer import FusedLoRALinear
from fastlora.layers import existing_layers
from fastlora.shards import all_finite, is_spread, reshard
from fastlora.wrappers import module_names


def merge_lora(model: nn.Module) -> None:
    """Add every update into its weight (`FusedLoRALinear.merge`); `unmerge_lora` restores each bit for bit.

    A copy of each W is kept for that. Where parameters are spread over processes, all of these must call it;
    each then changes its part. Either all layers are merged or, on an error, none more than before.

    Raises:
        ValueError: If there is no LoRA layer, or a weight is shared with another module or would not be
            finite.
    """
    layers = existing_layers(model)
    reshard(model)
    check_mergeable(model, layers)
    todo = [layer for layer in layers.values() if not layer.merged]
    try:
        for layer in todo:
            layer.merge()
    except BaseException:
        for layer in todo:
            layer.unmerge()
        raise


def unmerge_lora(model: nn.Module) -> None:
    """Put every W back, bit for bit.

    Raises:
        ValueError: If there is no LoRA layer.
    """
    layers = existing_layers(model)
    reshard(model)
    for layer in layers.values():
        layer.unmerge()


def check_mergeable(model: nn.Module, layers: Mapping[str, FusedLoRALinear]) -> None:
    """Raise ValueError, naming it, where a layer cannot be merged.

    Merging would change a weight that another module uses too; and A and B must be finite.
    """
    for name, layer in layers.items():
        if not layer.lora_A.is_meta and not (all_finite(layer.lora_A) and all_finite(layer.lora_B)):
            raise ValueError(
                f"A and B of layer {name!r} must be finite to be merged; they hold NaN or infinity"
            )
    check_unshared(model, layers, "merged", "leave it unmerged")


def check_unshared(
    model: nn.Module, layers: Mapping[str, FusedLoRALinear], to_be: str, otherwise: str
) -> None:
    """Raise ValueError, naming it, where changing a layer's W would change another module."""
    owners: dict[object, list[str]] = {}
    for module, (name, *_) in module_names(model).items():
        for kind, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(_memory(parameter), []).append(f"{name}.{kind}".lstrip("."))
    for name, layer in layers.items():
        users = owners[_memory(layer.weight)]
        if len(users) > 1:
            raise ValueError(
                f"{name}.weight must belong to this layer alone to be {to_be}; it is shared by "
                f"{', '.join(users)} (give the layer a weight of its own first, or {otherwise})"
            )


def _memory(parameter: nn.Parameter) -> object:
    """The same for two parameters where writing one changes the other."""
    if parameter.is_meta or parameter.numel() == 0 or is_spread(parameter):
        return id(parameter)
    return parameter.device, parameter.data_ptr()
