"""Finds updates that require a gradient and get none; DistributedDataParallel's own error is hard to read."""

from __future__ import annotations

from typing import Final

from torch import nn

from fastlora.arguments import listed, shown
from fastlora.layer.training_warnings import idle_updates, why_untrained
from fastlora.model.find_layers import existing_layers

_NAMED: Final = 8


def check_all_trained(model: nn.Module) -> None:
    """Raise unless every trained A and B got a gradient; call it after the first backward pass.

    DistributedDataParallel waits for the gradient of every parameter. If one never comes, the next forward
    pass fails with an error that lists parameter indices ("Expected to have finished reduction"). This check
    names the layers and the reasons. It communicates nothing.

    Args:
        model: A model with LoRA layers, wrapped or not.

    Raises:
        ValueError: If a layer's update has no gradient, naming each layer and the reason; or if there is no
            LoRA layer.
    """
    names = {layer: name for name, layer in existing_layers(model).items()}
    idle = [f"{shown(names[layer], 80)} ({why_untrained(layer)})" for layer in idle_updates(names)]
    if idle:
        raise ValueError(
            "every trained update must take part in the loss; without a gradient: "
            f"{listed(idle, _NAMED)}. Enable or unmerge them, freeze their "
            "lora_A and lora_B before wrapping, or pass find_unused_parameters=True"
        )
