"""Which LoRA layer goes around a layer of another kind."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from fastlora.formats.registry import format_of
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.fused_lora_conv1d import FusedLoRAConv1D
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding, is_embedding
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.lora_conv import LoRAConv, is_conv
from fastlora.layer.quantized import QuantizedLoRALinear


def lora_layer_around(linear: nn.Module, **options: Any) -> FusedLoRALinear | FusedLoRAEmbedding | LoRAConv:
    """A LoRA layer around a layer of any kind that is known, unchanged; the caller freezes W and b."""
    if is_conv(linear):
        return LoRAConv.around(linear, **options)
    if is_embedding(linear):
        return FusedLoRAEmbedding.around(linear, **options)
    cls: type[FusedLoRALinear] = FusedLoRAConv1D if is_conv1d(linear) else FusedLoRALinear
    cls = cls if format_of(linear) is None else QuantizedLoRALinear
    return cls._from_linear_unfrozen(cast(nn.Linear, linear), **options)
