"""LoRA in weight space, as notebooks teach it: W + s B A formed anew at every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from bench.nets.tuner import Tuned, Tuner, Update, pairs
from fastlora import LoRAParametrization


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Register a parametrization on each layer's weight."""
    model.requires_grad_(False)
    loras = {
        name: LoRAParametrization.register(
            cast(nn.Linear, model.get_submodule(name)), r=update.r, alpha=update.alpha
        )
        for name in names
    }
    return Tuned(model, pairs({name: (lora.lora_A, lora.lora_B) for name, lora in loras.items()}))


def why_absent(base: torch.dtype, update: Update) -> str | None:
    """What weight space cannot express."""
    if update.dropout:
        return "LoRA in weight space has no input to drop entries of"
    return None if update.adapter_dtype == base else "its A and B take the weight's dtype"


PARAMETRIZED = Tuner(
    name="parametrized",
    about="LoRA in weight space by torch.nn.utils.parametrize, as notebooks write it",
    adapts=True,
    tune=tune,
    why_absent=why_absent,
)
