"""Updates that are trained but receive no gradient, which DistributedDataParallel answers obscurely."""

from __future__ import annotations

from torch import nn

from fastlora.layer import FusedLoRALinear
from fastlora.layers import existing_layers


def check_all_trained(model: nn.Module) -> None:
    """Raise unless every A and B that is trained got a gradient; call it after a first backward pass.

    DistributedDataParallel reduces gradients when the last of them is there. One that never comes makes the
    next forward pass fail with parameters' numbers ("Expected to have finished reduction"); this says which
    layers they are and why. It communicates nothing.

    Args:
        model: A model with LoRA layers, wrapped or not.

    Raises:
        ValueError: If a layer's update has no gradient, naming each layer and the reason; or if there is no
            LoRA layer.
    """
    idle = [
        f"{name!r} ({_reason(layer)})"
        for name, layer in existing_layers(model).items()
        if any(each.requires_grad and each.grad is None for each in (layer.lora_A, layer.lora_B))
    ]
    if idle:
        raise ValueError(
            f"every trained update must take part in the loss; without a gradient: {', '.join(idle)}. Enable "
            "or unmerge them, freeze their lora_A and lora_B before wrapping, or pass "
            "find_unused_parameters=True"
        )


def _reason(layer: FusedLoRALinear) -> str:
    if not layer.enabled:
        return "disabled"
    return "merged" if layer.merged else "not used by the loss"
