"""fastlora: `apply_lora`, on the path that `fastlora.set_backend` chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from bench.nets.tuner import Tuned, Tuner, Update, pairs
from fastlora import FusedLoRALinear, LoRAConfig, apply_lora


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """The call that the README shows."""
    config = LoRAConfig(
        r=update.r,
        alpha=update.alpha,
        dropout=update.dropout,
        adapter_dtype=update.adapter_dtype,
        target_modules=list(names),
    )
    model = apply_lora(model, config)
    layers = {name: cast(FusedLoRALinear, model.get_submodule(name)) for name in names}
    return Tuned(model, pairs({name: (layer.lora_A, layer.lora_B) for name, layer in layers.items()}))


FASTLORA = Tuner(name="fastlora", about="fastlora.apply_lora", adapts=True, tune=tune)
