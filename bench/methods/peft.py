"""PEFT's own layer, `peft.tuners.lora.Linear` over a frozen nn.Linear, put there by PEFT's own function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.methods.method import Layer, Method, adapted, linear_with
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """The layer that a user of PEFT trains, with the operands' A and B."""
    from peft import LoraConfig, inject_adapter_in_model

    r = ops.A.shape[0]
    model = nn.ModuleDict({"linear": linear_with(ops.W, ops.b)})
    # The scaling is lora_alpha / r. PEFT annotates an integer, and computes with whatever number it gets.
    config = LoraConfig(r=r, lora_alpha=ops.s * r, lora_dropout=dropout, target_modules=["linear"])  # type: ignore[arg-type]
    inject_adapter_in_model(config, model)
    layer: Any = model["linear"].train()
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    layer.lora_A["default"].weight, layer.lora_B["default"].weight = A, B
    return Layer(layer, (A, B))


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why PEFT cannot be imported."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: F401
    except Exception as error:  # an import of another library may fail in any way
        return f"{type(error).__name__}: {error}"
    return None


PEFT = Method(
    name="peft",
    about="Hugging Face PEFT's lora.Linear",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_absent=why_absent,
    external=True,
)
