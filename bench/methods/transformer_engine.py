"""NVIDIA's Transformer Engine: LoRA as two chains of operations that its fuser may join.

x forks at the head of the base chain and joins at the end of the low-rank one, both in place, which lets
cuBLAS accumulate onto what is there: y in the forward pass, dx in the backward pass. So Megatron Bridge and
NeMo build their fused LoRA layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.methods.method import Method, Pair, Update, fresh_pair, importable, replacing


class Chains(nn.Module):
    """The two chains over the layer's own memory."""

    def __init__(self, linear: nn.Linear, update: Update) -> None:
        from transformer_engine.pytorch import ops as te

        super().__init__()

        def product(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Module:
            N, K = weight.shape
            layer: nn.Module = te.Linear(K, N, bias=bias is not None, device="meta", dtype=weight.dtype)
            layer.weight, layer.bias = weight, bias
            return layer

        self.A, self.B = fresh_pair(linear, update.r, update.adapter_dtype)
        self.base = te.Sequential(te.MakeExtraOutput(in_place=True), product(linear.weight, linear.bias))
        drop = [te.Dropout(update.dropout)] if update.dropout else []
        scale = te.ConstantScale(update.alpha / update.r)
        self.update = te.Sequential(
            *drop, product(self.A), product(self.B), scale, te.AddExtraInput(in_place=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[M, K] -> [M, N]."""
        y, forked = self.base(x)
        total: Tensor = self.update(forked, y)
        return total


def _around(linear: nn.Linear, update: Update) -> tuple[nn.Module, Pair]:
    layer = Chains(linear, update)
    return layer, (layer.A, layer.B)


def _absent(device: torch.device, dtype: torch.dtype) -> str | None:
    def importing() -> None:
        import transformer_engine.pytorch  # noqa: F401

    return importable(importing) if device.type == "cuda" else "Transformer Engine needs a CUDA GPU"


def _why_not(layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
    return None if update.adapter_dtype == dtype else "its products take one dtype for x, A and B"


TRANSFORMER_ENGINE = Method(
    "transformer-engine",
    "Transformer Engine's operation fuser, as Megatron Bridge builds LoRA with it",
    replacing(_around),
    why_absent=_absent,
    why_not=_why_not,
    external=True,
)
