"""Replaces modules of a model wherever they are registered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from fastlora.experts.layer import FusedLoRAExperts, put_beside, take_away
from fastlora.experts.stacks import Stack
from fastlora.layer.commits import Commit, commit
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.model.ddp import note_change


def replace_modules(model: nn.Module, replacements: Iterable[tuple[Any, nn.Module | None]]) -> nn.Module:
    """Put a new module in every place of an old one, in the commit in progress or in a new one.

    A layer of experts goes beside the module that holds their weights, or leaves it; nothing is replaced.

    Args:
        model: The model; it may itself be one of the old modules.
        replacements: Pairs of an old module and the new one; of a `Stack` and its layer; of that layer and
            None, to take it away.

    Returns:
        The model, or its replacement if the model itself was replaced.
    """
    new: dict[Any, Any] = dict(replacements)
    with commit() as changing:
        note_change(model, changing)
        for module in list(model.modules()):
            for name, child in module._modules.items():
                if child is not None and new.get(child) is not None:
                    changing.put(module._modules, name, new[child])
        for old, layer in new.items():
            if isinstance(old, Stack):
                put_beside(layer, changing)
            elif isinstance(old, FusedLoRAExperts):
                take_away(old, changing)
        _follow_fast_paths(model, changing)
    return cast(nn.Module, new.get(model, model))


def _follow_fast_paths(model: nn.Module, changing: Commit) -> None:
    """Turn off torch's inference fast path around LoRA layers, and on again where there are none left.

    On the fast path, nn.TransformerEncoderLayer passes linear1.weight and linear2.weight to one fused
    operator and calls neither layer, so LoRA would be silently ignored in eval mode. For it,
    nn.TransformerEncoder turns padded batches into nested tensors.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _hold(module, "activation_relu_or_gelu", 0, changing)
        elif isinstance(module, nn.TransformerEncoder):
            _hold(module, "use_nested_tensor", False, changing)


def _hold(module: nn.Module, switch: str, off: int, changing: Commit) -> None:
    """Turn a switch off while LoRA is inside, keeping its own value to restore it."""
    own, aside = vars(module), f"_{switch}_without_lora"
    has_lora = any(isinstance(inner, FusedLoRALinear) for inner in module.modules())
    if has_lora and switch in own and aside not in own:
        changing.put(own, aside, own[switch])
        changing.put(own, switch, off)
    elif not has_lora and aside in own:
        changing.put(own, switch, own[aside])
        changing.drop(own, aside)
