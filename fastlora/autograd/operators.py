"""The formula as torch operators, `torch.ops.fastlora.lora_forward` and `lora_backward`, and without them.

Operators want flat schemas: here alone the operands are spelled out. Each decides by its operands and by
`backend`, the setting of a forward, which its backward is given too, as the code paths draw other masks; None
means the setting in force. The fake versions give torch.compile and torch.export the shapes. Defined with
Library.define, whose call costs about half of a `custom_op`'s; `forward` and `backward` save that too where
nobody needs to see an operator. `triton` is imported only when a kernel first runs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fastlora.formula.operands import EVERYTHING, Needs, Operands, accumulation_dtype, plain
from fastlora.routes import cpu, vendor
from fastlora.routes.decide import Decision, decide

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

_library = torch.library.Library("fastlora", "DEF")
_library.define(
    "lora_forward(Tensor x, Tensor W, Tensor? b, Tensor A, Tensor B, float s, float dropout, Tensor? seed, "
    "str? backend=None) -> (Tensor, Tensor)"
)
_library.define(
    "lora_backward(Tensor dy, Tensor x, Tensor W, Tensor A, Tensor B, Tensor p, float s, "
    "float dropout, Tensor? seed, bool need_dx, bool need_dA, bool need_dB, str? backend=None) "
    "-> (Tensor, Tensor, Tensor)"
)


def forward(o: Operands, needs: Needs, setting: str) -> tuple[Tensor, Tensor, Decision | None]:
    """y [M, N] in x's dtype, p [M, r] in fp32 (fp64 for fp64), and what was decided for the backward pass.

    Args:
        o: The operands.
        needs: The gradients that will be asked for.
        setting: "auto", "triton" or "torch".
    """
    if not needs_operator(o.x):
        decision = decide(o, needs, setting)
        return *_run_forward(o, decision), decision
    (W,) = o.base.tensors
    return *lora_forward(o.x, W, o.b, o.A, o.B, o.s, o.dropout, o.seed, setting), None


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs, setting: str, decision: Decision | None
) -> Gradients:
    """dx, dA and dB in the dtypes of x, A and B; None where not needed.

    In grad mode it is the operator: a derivative of these may be asked for, and the operator has one.

    Args:
        o: As `forward` was given them.
        dy: [M, N] in x's dtype.
        p: As `forward` returned it.
        needs: What is computed.
        setting: As `forward` was given it.
        decision: As `forward` returned it.
    """
    if decision is not None and not torch.is_grad_enabled() and not needs_operator(o.x):
        return _run_backward(o, dy, p, needs, decision)
    (W,) = o.base.tensors
    found = lora_backward(dy, o.x, W, o.A, o.B, p, o.s, o.dropout, o.seed, *needs, setting)
    dx, dA, dB = (one if needed else None for one, needed in zip(found, needs, strict=True))
    return dx, dA, dB


def needs_operator(x: Tensor) -> bool:
    """Whether the passes must be seen as operators, and cannot be called directly.

    The pair of operators costs the host 20 us a layer and step. But a compiler must see them whole, and what
    holds no values or wraps them (meta and fake tensors, DTensor) must be asked. A dispatch mode must too:
    selective checkpointing keeps what operators return, and the CPU path goes on to add onto that. Under
    autocast, where a backward pass may run, the operators keep it out.
    """
    return (
        type(x) is not Tensor
        or x.is_meta
        or torch.compiler.is_compiling()
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._is_any_autocast_enabled()
    )


def _run_forward(o: Operands, decision: Decision) -> tuple[Tensor, Tensor]:
    if decision.forward.is_fused:
        from fastlora.routes import fused

        return fused.forward(o)
    return cpu.forward(o) if o.x.is_cpu else vendor.forward(o)


def _run_backward(o: Operands, dy: Tensor, p: Tensor, needs: Needs, decision: Decision) -> Gradients:
    if decision.backward.is_fused:
        from fastlora.routes import fused

        return fused.backward(o, dy, p, needs)
    return cpu.backward(o, dy, p, needs) if o.x.is_cpu else vendor.backward(o, dy, p, needs)


def _forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    o = Operands(x, plain(W), b, A, B, s, dropout, seed)
    return _run_forward(o, decide(o, EVERYTHING, backend))


def _forward_fake(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    M, N, r = x.shape[0], W.shape[0], A.shape[0]
    return x.new_empty(M, N), x.new_empty(M, r, dtype=accumulation_dtype(x.dtype))


def _backward(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    need_dx: bool,
    need_dA: bool,
    need_dB: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients; one that is not needed has shape [0]."""
    o, needs = Operands(x, plain(W), None, A, B, s, dropout, seed), Needs(need_dx, need_dA, need_dB)
    found = _run_backward(o, dy, p, needs, decide(o, needs, backend))
    dx, dA, dB = (
        like.new_empty(0) if one is None else one for one, like in zip(found, (x, A, B), strict=True)
    )
    return dx, dA, dB


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    need_dx: bool,
    need_dA: bool,
    need_dB: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        A.new_empty(A.shape if need_dA else (0,)),
        B.new_empty(B.shape if need_dB else (0,)),
    )


_library.impl("lora_forward", _forward, "CompositeExplicitAutograd")
_library.impl("lora_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fastlora::lora_forward", _forward_fake, lib=_library)
torch.library.register_fake("fastlora::lora_backward", _backward_fake, lib=_library)

lora_forward = torch.ops.fastlora.lora_forward.default
lora_backward = torch.ops.fastlora.lora_backward.default


def _register_autocast(kind: str) -> None:
    """Keep autocast out of the passes: its conversions inside would mix dtypes that belong together.

    The forward takes x, W and b in autocast's dtype, as nn.Linear does, for who calls it as it stands (an
    exported program); the backward takes what the forward saved as it is.
    """

    def forward(x: Tensor, W: Tensor, b: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        if x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        with torch.autocast(kind, enabled=False):
            return cast("tuple[Tensor, Tensor]", lora_forward(x, W, b, *rest))

    def backward(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(kind, enabled=False):
            return cast("tuple[Tensor, Tensor, Tensor]", lora_backward(*operands))

    _library.impl("lora_forward", forward, f"Autocast{kind.upper()}")
    _library.impl("lora_backward", backward, f"Autocast{kind.upper()}")


_register_autocast("cpu")
_register_autocast("cuda")
