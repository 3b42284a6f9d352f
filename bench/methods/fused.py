"""fastlora: `apply_lora`, on the path that `fastlora.set_backend` chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.methods.method import Method, Tuned, Update, named
from fastlora import BackendError, LoRAConfig, apply_lora
from fastlora.routes.decide import route_on


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
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    return Tuned(model, named({name: (layer.lora_A, layer.lora_B) for name, layer in layers.items()}))


def _no_backend(device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        route_on(device, dtype)
    except BackendError as error:
        return str(error)
    return None


FASTLORA = Method("fastlora", "fastlora.apply_lora", tune, why_absent=_no_backend)
UNDROPPED = replace(
    FASTLORA,
    name="fastlora-p0",
    about="fastlora without dropout, beside it in the cases with dropout",
    tune=lambda model, names, update: tune(model, names, update._replace(dropout=0.0)),
    drops=False,
)
