"""A layer's passes called: directly, or as torch operators where something must see these.

A direct call saves what an operator costs (see `needs_operator`). The forward pass hands its decision, which
code runs, to the backward pass; an operator decides in both, in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.autograd.operators import lora_backward, lora_forward, unpack
from fastlora.formula.operands import BaseWeight, Needs, Operands, plain
from fastlora.routes import few_rows
from fastlora.routes.decide import Decision, decide
from fastlora.routes.dequantize import dequantize
from fastlora.routes.passes import passes_of

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    o: Operands, needs: Needs, setting: str, decision: Decision | None = None
) -> tuple[Tensor, Tensor, Decision | None]:
    """y [M, N] in x's dtype, p [M, r] in fp32 (fp64 for fp64), and the decision, for the backward pass.

    Args:
        o: The operands.
        needs: The gradients that the backward pass will compute.
        setting: "auto", "triton" or "torch".
        decision: Of this call, where the caller has taken it; only where no operator is needed.
    """
    if decision is not None or not needs_operator(o.x):
        decision = decision or decide(o, needs, setting)
        y, p = passes_of(decision.forward.name, o.x.is_cpu).forward(o)
        return y, p, decision
    (W,) = o.base.tensors
    y, p = lora_forward(o.x, W, o.b, o.A, o.B, o.s, o.dropout, o.seed, setting, o.base.unpacked_from)
    return y, p, None


def packed_forward(o: Operands, needs: Needs, setting: str) -> tuple[Tensor, Tensor, Decision | None]:
    """As `forward`, over a packed W: unpacked inside the product where rows are few, else beforehand."""
    if not needs_operator(o.x) and (decision := few_rows.decision_of(o, needs, setting)) is not None:
        from fastlora.routes import fused_packed

        y, p = fused_packed.few_rows(o)
        return y, p, decision
    W = plain(dequantized(o.base, o.x), o.base.format)
    return forward(o._replace(base=W), needs, setting)


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs, setting: str, decision: Decision | None
) -> Gradients:
    """dx, dA and dB in the dtypes of x, A and B; None if not needed.

    In grad mode it calls the operator, which has a derivative: the gradients may be differentiated again.

    Args:
        o: The operands of `forward`.
        dy: [M, N] in x's dtype.
        p: As `forward` returned it.
        needs: Which gradients to compute.
        setting: The setting of `forward`.
        decision: As `forward` returned it.
    """
    if decision is not None and not torch.is_grad_enabled() and not needs_operator(o.x):
        return passes_of(decision.backward.name, o.x.is_cpu).backward(o, dy, p, needs)
    (W,) = o.base.tensors
    rest = o.s, o.dropout, o.seed, *needs, setting, o.base.unpacked_from
    found = lora_backward(dy, o.x, W, o.A, o.B, p, *rest)
    dx, dA, dB = (one if needed else None for one, needed in zip(found, needs, strict=True))
    return dx, dA, dB


def dequantized(base: BaseWeight, after: Tensor) -> Tensor:
    """W [N, K] of a packed base, in its dtype; `after` is x in a forward pass and dy in a backward pass."""
    if not needs_operator(after):
        return dequantize(base)
    W: Tensor = unpack(base.tensors, base.format, base.N, base.K, base.statics, base.dtype, after)
    return W


def needs_operator(x: Tensor) -> bool:
    """Whether the passes must go through the operators, and cannot be called directly.

    The pair of operators costs the host 20 us a layer and step. They are needed in these cases:

      - A compiler must see each pass as one operator.
      - Meta tensors, fake tensors and DTensors handle operators, and not the code inside them.
      - A dispatch mode may keep what an operator returns, as selective checkpointing does. The CPU path would
        change such a tensor in place.
      - Under autocast, in which a backward pass may run too, the operators keep autocast out of the passes.
    """
    return (
        type(x) is not Tensor
        or x.is_meta
        or torch.compiler.is_compiling()
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._is_any_autocast_enabled()
    )
