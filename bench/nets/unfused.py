"""LoRA as most libraries write it: ReferenceLoRALinear, separate torch ops differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from bench.nets.tuner import Tuned, Tuner, Update, pairs
from fastlora import ReferenceLoRALinear


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Put a ReferenceLoRALinear in each layer's place."""
    model.requires_grad_(False)
    layers = {}
    for name in names:
        linear = cast(nn.Linear, model.get_submodule(name))
        layer = ReferenceLoRALinear(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            r=update.r,
            alpha=update.alpha,
            dropout=update.dropout,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
            adapter_dtype=update.adapter_dtype,
        )
        layer.weight, layer.bias = linear.weight, linear.bias
        model.set_submodule(name, layer)
        layers[name] = (layer.lora_A, layer.lora_B)
    return Tuned(model, pairs(layers))


UNFUSED = Tuner(name="unfused", about="LoRA in separate torch ops under autograd", adapts=True, tune=tune)
