"""Putting modules in the places of others in a model, wherever these are registered."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fastlora.layer import FusedLoRALinear


def replace_modules(model: nn.Module, replacements: Iterable[tuple[nn.Module, nn.Module]]) -> nn.Module:
    """Put a new module in every place of an old one.

    Args:
        model: The model; it may itself be one of the old modules.
        replacements: Pairs of an old module and the new one.

    Returns:
        The model, or what takes its place.
    """
    new = dict(replacements)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in new:
                module._modules[name] = new[child]
    _follow_fast_paths(model)
    return new.get(model, model)


def _follow_fast_paths(model: nn.Module) -> None:
    """Turn off torch's inference fast path around LoRA layers, and on again where they are gone.

    nn.TransformerEncoderLayer then passes linear1.weight and linear2.weight to one fused operator and calls
    neither layer, so that LoRA would be silently ignored in eval mode; nn.TransformerEncoder makes nested
    tensors of padded batches for it.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _hold(module, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder):
            _hold(module, "use_nested_tensor", False)


def _hold(module: nn.Module, switch: str, off: int) -> None:
    """Keep the switch off while LoRA is inside, its own value aside."""
    aside = f"_{switch}_without_lora"
    has_lora = any(isinstance(inner, FusedLoRALinear) for inner in module.modules())
    if has_lora and hasattr(module, switch) and not hasattr(module, aside):
        setattr(module, aside, getattr(module, switch))
        setattr(module, switch, off)
    elif not has_lora and hasattr(module, aside):
        setattr(module, switch, getattr(module, aside))
        delattr(module, aside)
