"""Layers whose W other libraries pack, as the linear level's `--base` takes them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

from fastlora.layer.base_weights import packed_format
from fastlora.routes.dequantize import dequantize


def nf4(W: Tensor, b: Tensor | None) -> nn.Module:
    """bitsandbytes' NF4 with nested scales, computed in W's dtype."""
    bnb: Any = import_module("bitsandbytes")
    N, K = W.shape
    layer = bnb.nn.Linear4bit(K, N, b is not None, compute_dtype=W.dtype, quant_type="nf4", device="meta")
    layer.weight = bnb.nn.Params4bit(W.cpu().clone(), quant_type="nf4", module=layer)
    return _with_bias(layer, b, W.device)


def int8(W: Tensor, b: Tensor | None) -> nn.Module:
    """bitsandbytes' int8."""
    bnb: Any = import_module("bitsandbytes")
    N, K = W.shape
    layer = bnb.nn.Linear8bitLt(K, N, b is not None, has_fp16_weights=False, device="meta")
    layer.weight = bnb.nn.Int8Params(W.cpu().clone(), requires_grad=False, has_fp16_weights=False)
    return _with_bias(layer, b, W.device)


def _with_bias(layer: nn.Module, b: Tensor | None, device: torch.device) -> nn.Module:
    if b is not None:
        layer.bias = nn.Parameter(b.detach().clone(), requires_grad=False)
    return layer.to(device)


PACKINGS: Final[dict[str, Callable[[Tensor, Tensor | None], nn.Module]]] = {"nf4": nf4, "int8": int8}

# PEFT takes its own class for a packed layer only if the model says that it was loaded so.
LOADED: Final = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}


def unpacked(packed: nn.Module, dtype: torch.dtype) -> Tensor:
    """W [N, K] as the packed layer holds it."""
    format = packed_format(packed)
    assert format is not None
    return dequantize(format.base_of(packed, dtype))
