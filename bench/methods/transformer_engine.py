"""NVIDIA's Transformer Engine: LoRA as two chains of operations that its fuser may join.

x forks at the head of the base chain and joins at the end of the low-rank one, both in place, which lets
cuBLAS accumulate onto what is there: y in the forward pass, dx in the backward pass. So Megatron Bridge and
NeMo build their fused LoRA layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.methods.method import Layer, Method, adapted, linear_with
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """The two chains over the operands' own memory."""
    from transformer_engine.pytorch import ops as te

    def linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Module:
        N, K = weight.shape
        layer: nn.Module = te.Linear(K, N, bias=bias is not None, device="meta", dtype=weight.dtype)
        layer.weight, layer.bias = weight, bias
        return layer

    frozen = linear_with(ops.W, ops.b).requires_grad_(False)
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    base = te.Sequential(te.MakeExtraOutput(in_place=True), linear(frozen.weight, frozen.bias))
    drop = [te.Dropout(dropout)] if dropout else []
    update = te.Sequential(
        *drop, linear(A), linear(B), te.ConstantScale(ops.s), te.AddExtraInput(in_place=True)
    )

    def apply(x: Tensor) -> Tensor:
        y, forked = base(x)
        total: Tensor = update(forked, y)
        return total

    return Layer(apply, (A, B))


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot be imported or run."""
    if device.type != "cuda":
        return "Transformer Engine needs a CUDA GPU"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception as error:  # an import of another library may fail in any way
        return f"{type(error).__name__}: {error}"
    return None


def why_not(case: Case) -> str | None:
    """Why a case is not for it."""
    return None if case.adapter_dtype == case.dtype else "its products take one dtype for x, A and B"


TRANSFORMER_ENGINE = Method(
    name="transformer-engine",
    about="Transformer Engine's operation fuser, as Megatron Bridge builds LoRA with it",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_absent=why_absent,
    why_not=why_not,
    external=True,
)
