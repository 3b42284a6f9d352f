"""Microsoft's loralib, the library of the LoRA paper: separate torch ops, x A^T B^T from left to right."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bench.cases import Case
from bench.methods.method import Layer, Method, adapted, linear_with
from tests.testing import Operands


def layer_around(linear: nn.Linear, r: int, alpha: float, dropout: float = 0.0) -> nn.Linear:
    """A loralib.Linear in training mode with the layer's own weight and bias, both frozen.

    `merge_weights` is off: with it, `eval` adds the update into the weight, which is then not as it was.

    Raises:
        ImportError: If loralib is not installed.
    """
    from loralib import Linear

    N, K = linear.weight.shape
    # On "meta" no weight is allocated and initialized only to be replaced.
    layer: nn.Linear = Linear(
        K,
        N,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        merge_weights=False,
        bias=linear.bias is not None,
        device="meta",
        dtype=linear.weight.dtype,
    )
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.weight.requires_grad_(False)
    if layer.bias is not None:
        layer.bias.requires_grad_(False)
    kind: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    layer.lora_A = nn.Parameter(torch.randn(r, K, **kind) / r)
    layer.lora_B = nn.Parameter(torch.zeros(N, r, **kind))
    return layer


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """The layer with the operands' A and B."""
    r = ops.A.shape[0]
    layer = layer_around(linear_with(ops.W, ops.b), r, ops.s * r, dropout)
    layer.lora_A, layer.lora_B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    return Layer(layer, (layer.lora_A, layer.lora_B))


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Whether it is installed."""
    return None if find_spec("loralib") else "loralib is not installed"


def why_not(case: Case) -> str | None:
    """Why a case is not for it."""
    return None if case.adapter_dtype == case.dtype else "it multiplies x by A as it is: one dtype for both"


LORALIB = Method(
    name="loralib",
    about="Microsoft's loralib.Linear",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_absent=why_absent,
    why_not=why_not,
    external=True,
)
