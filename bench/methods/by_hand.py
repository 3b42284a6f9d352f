"""Without a library: LoRA in separate ops, under torch.compile, in place by hand, in weight space.

And what it is measured by: the frozen layer, the least there is, and full fine-tuning.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bench.methods.method import Method, Tuned, Update, bare, refusing, replacing
from fastlora import LoRAParametrization
from fastlora.formula.oracle import unfused

# Each shape is compiled for its own sizes; past the limit torch runs the rest uncompiled.
_MOST_SHAPES = 256


def _with_gradient(layer: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y if y.requires_grad else y.requires_grad_()


def freeze(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Nothing is trained; gradients run back to the first layer that LoRA would adapt."""
    model.requires_grad_(False)
    for name in names if len(names) > 1 else ():  # a layer alone gets an x that takes a gradient
        model.get_submodule(name).register_forward_hook(_with_gradient)
    return Tuned(model, {})


def train_all(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Every parameter that takes a gradient: of a layer alone the weight, its bias stays frozen."""
    return Tuned(model, {name: p for name, p in model.named_parameters() if p.requires_grad})


def masked(D: Tensor) -> Callable[..., Tensor]:
    """x Wᵀ + s (D * x) Aᵀ Bᵀ + b, with a given dropout mask D [M, K] of 0 and 1 / (1 - dropout)."""

    def formula(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, **_: Any) -> Tensor:
        update = F.linear(F.linear((x * D.to(x.dtype)).to(A.dtype), A), B) * s
        return F.linear(x, W, b) + update.to(x.dtype)

    return formula


class AddmmLoRA(torch.autograd.Function):
    """y = x Wᵀ + b, then y += s p Bᵀ with p = x Aᵀ, by `addmm_`; backward likewise, as Unsloth writes it.

    Its strongest form: each low-rank product is computed once, where Unsloth's backward computes x Aᵀ again
    and dy B twice. A and B are converted to x's dtype, and their gradients are rounded to it, as there. A
    bias, which Unsloth refuses, is added by cuBLAS's epilogue; dropout is refused, as there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        """[M, K] -> [M, N]."""
        p = x @ A.to(x.dtype).t()
        y = F.linear(x, W, b)
        y.addmm_(p, B.to(x.dtype).t(), alpha=s)
        ctx.save_for_backward(x, W, A, B, p)
        ctx.s = s
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        x, W, A, B, p = ctx.saved_tensors
        q = torch.empty_like(p).addmm_(dy, B.to(dy.dtype), beta=0, alpha=ctx.s)
        dB = torch.empty_like(B, dtype=dy.dtype).addmm_(dy.t(), p, beta=0, alpha=ctx.s)
        dA = q.t() @ x
        dx = dy @ W
        dx.addmm_(q, A.to(dy.dtype))
        return dx, None, None, dA.to(A.dtype), dB.to(B.dtype), None


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    return torch.compile(unfused, dynamic=False, fullgraph=True)


def _cannot_compile(device: torch.device, dtype: torch.dtype) -> str | None:
    if not torch._dynamo.is_dynamo_supported():  # type: ignore[attr-defined]
        return f"torch {torch.__version__} does not compile under Python {sys.version.split()[0]}"
    return None


def _parametrized(linear: nn.Linear, update: Update) -> nn.Module:
    LoRAParametrization.register(linear, r=update.r, alpha=update.alpha)
    return linear


FROZEN = Method("frozen", "frozen: forward, and dx alone backward", freeze, trains="", drops=False)
FULL = Method("full", "full fine-tuning: forward, dx and dW", train_all, trains="W", drops=False)
UNFUSED = Method(
    "unfused",
    "LoRA in separate torch ops under autograd; x is converted to the adapters' dtype, as PEFT does",
    bare(unfused),
)
COMPILED = Method(
    "compiled",
    "the same ops under torch.compile, compiled for each shape",
    lambda *given: bare(_compiled())(*given),
    why_absent=_cannot_compile,
    external=True,
)
ADDMM = Method(
    "addmm",
    "LoRA in cuBLAS products and addmm_, backward by hand, as Unsloth does",
    bare(AddmmLoRA.apply),
    why_not=refusing(dropout="it has no dropout: Unsloth refuses one in its fused layers"),
)
PARAMETRIZED = Method(
    "parametrized",
    "LoRA in weight space by torch.nn.utils.parametrize: W + s B A formed at each forward",
    replacing(_parametrized, "parametrizations.weight.0.lora_A", "parametrizations.weight.0.lora_B"),
    why_not=refusing(
        dropout="the weight is formed before x is seen: there is nothing to drop",
        wider="its A and B take the weight's dtype",
    ),
)
