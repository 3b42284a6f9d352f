"""Small packed layers of other libraries, and what holds LoRA on them to fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import Inputs, random_inputs

FAMILY = "bnb-4bit"


def linear_4bit(
    W: Tensor,
    b: Tensor | None = None,
    *,
    kind: str = "nf4",
    nested: bool = True,
    block: int = 64,
    storage: torch.dtype = torch.uint8,
    compute_dtype: torch.dtype | None = None,
) -> nn.Linear:
    """bitsandbytes' Linear4bit that holds W [N, K] and b."""
    bnb = pytest.importorskip("bitsandbytes")
    N, K = W.shape
    options = {"quant_type": kind, "compress_statistics": nested, "quant_storage": storage}
    layer = bnb.nn.Linear4bit(K, N, bias=b is not None, compute_dtype=compute_dtype, **options)
    layer.weight = bnb.nn.Params4bit(W.clone(), requires_grad=False, blocksize=block, module=layer, **options)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    return layer.to("cpu")


def linear_int8(W: Tensor, b: Tensor | None = None) -> nn.Linear:
    """bitsandbytes' Linear8bitLt that holds W [N, K] and b."""
    bnb = pytest.importorskip("bitsandbytes")
    N, K = W.shape
    layer = bnb.nn.Linear8bitLt(K, N, bias=b is not None, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(W.clone(), requires_grad=False, has_fp16_weights=False)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    return layer.to("cpu").train()


MAKERS = {"bnb-4bit": linear_4bit, "bnb-int8": linear_int8}


def packed(inputs: Inputs, format: str = FAMILY, **options: Any) -> nn.Module:
    """A packed layer with the inputs' W and b."""
    return MAKERS[format](inputs.W, inputs.b, **options)


def net(
    K: int = 64, hidden: int = 32, N: int = 16, dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    """Two 4-bit layers "0" and "2" around a ReLU."""
    sizes = ((K, hidden), (hidden, N))
    first, last = (linear_4bit(torch.randn(n, k, dtype=dtype) * k**-0.5, **options) for k, n in sizes)
    return nn.Sequential(first, nn.ReLU(), last)


def results(layer: Any, inputs: Inputs) -> dict[str, Tensor]:
    """y, dx, dA and dB of a LoRA layer of ours with the inputs' A and B, for their x and dy."""
    with torch.no_grad():
        layer.lora_A.copy_(inputs.A)
        layer.lora_B.copy_(inputs.B)
    layer.alpha = inputs.s * layer.r
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    dx, dA, dB = torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), inputs.dy)
    return {"y": y.detach(), "dx": dx, "dA": dA, "dB": dB}


def assert_right(found: dict[str, Tensor], inputs: Inputs, W: Tensor) -> None:
    """Hold y and the gradients to fp64 with the unpacked W [N, K]."""
    whole = Inputs(inputs.x, W.to(inputs.x.dtype), inputs.b, inputs.A, inputs.B, inputs.s, inputs.dy)
    truth, torchs = oracle(whole), gradients(whole)
    for name, value in found.items():
        assert_within_budget(name, value, torchs[name], truth[name])


def small_inputs(dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
    """x [7, 50], W [37, 50], r = 3, with fp32 adapters: K is no multiple of a block."""
    return random_inputs(7, 50, 37, 3, dtype=dtype, adapter_dtype=torch.float32, **options)
