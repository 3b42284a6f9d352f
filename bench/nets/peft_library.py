"""PEFT, the real library, by the call that its users make."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bench.nets.tuner import Tuned, Tuner, Update, pairs


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """get_peft_model, and A and B in the dtype asked for."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=update.r,
        # PEFT annotates an integer, and computes with whatever number it gets.
        lora_alpha=update.alpha,  # type: ignore[arg-type]
        lora_dropout=update.dropout,
        target_modules=list(names),
    )
    wrapped = get_peft_model(model, config)
    layers = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        A, B = layer.lora_A["default"], layer.lora_B["default"]
        A.to(update.adapter_dtype)
        B.to(update.adapter_dtype)
        layers[name] = (A.weight, B.weight)
    return Tuned(wrapped, pairs(layers))


def why_absent(base: torch.dtype, update: Update) -> str | None:
    """Whether it is installed."""
    return None if find_spec("peft") else "peft is not installed"


PEFT = Tuner(
    name="peft", about="Hugging Face's PEFT: get_peft_model", adapts=True, tune=tune, why_absent=why_absent
)
