"""Microsoft's loralib, by the layer that its README puts in nn.Linear's place."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from bench.methods.loralib import layer_around
from bench.nets.tuner import Tuned, Tuner, Update, pairs


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Put a loralib.Linear in each layer's place."""
    model.requires_grad_(False)
    layers = {}
    for name in names:
        linear = cast(nn.Linear, model.get_submodule(name))
        layer: Any = layer_around(linear, update.r, update.alpha, update.dropout)
        model.set_submodule(name, layer)
        layers[name] = (layer.lora_A, layer.lora_B)
    return Tuned(model, pairs(layers))


def why_absent(base: torch.dtype, update: Update) -> str | None:
    """Whether it is installed and can mix the dtypes."""
    if find_spec("loralib") is None:
        return "loralib is not installed"
    return None if update.adapter_dtype == base else "it multiplies x by A as it is: one dtype for both"


LORALIB = Tuner(
    name="loralib", about="Microsoft's loralib.Linear", adapts=True, tune=tune, why_absent=why_absent
)
