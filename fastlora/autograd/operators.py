"""The operators `fastlora::lora_forward`, `lora_backward` and `dequantize`, and direct calls without them.

Operators have flat signatures, so only here are the operands spelled out. An operator decides its code path
by its operands and by `backend`, a backend setting; None means the current one. A backward is given the
setting of its forward, because the code paths draw different masks. The fake versions tell torch.compile and
torch.export the shapes. The operators are defined by Library.define, whose call costs about half of a
`custom_op`'s. `forward` and `backward` avoid even that, unless something must see an operator (see
`needs_operator`). `triton` is imported only when a kernel first runs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fastlora.formula.operands import EVERYTHING, BaseWeight, Needs, Operands, accumulation_dtype, plain
from fastlora.routes import cpu, few_rows, vendor
from fastlora.routes.decide import Decision, decide
from fastlora.routes.dequantize import dequantize
from fastlora.routes.passes import passes_of

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
# `after` is not read. A backward pass gives dy: else a compiler would see the same call as in the forward
# pass, make one of the two, and keep W between them.
_library.define(
    "dequantize(Tensor[] packed, str format, int N, int K, int[] statics, ScalarType dtype, "
    "Tensor? after=None) -> Tensor"
)


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
        y, p = _run_forward(o, decision)
        return y, p, decision
    (W,) = o.base.tensors
    y, p = lora_forward(o.x, W, o.b, o.A, o.B, o.s, o.dropout, o.seed, setting)
    return y, p, None


def packed_forward(o: Operands, needs: Needs, setting: str) -> tuple[Tensor, Tensor, Decision | None]:
    """As `forward`, over a packed W: unpacked inside the product where rows are few, else beforehand."""
    if not needs_operator(o.x) and (decision := few_rows.decision_of(o, needs, setting)) is not None:
        from fastlora.routes import fused

        y, p = fused.few_rows(o)
        return y, p, decision
    return forward(o._replace(base=plain(dequantized(o.base, o.x))), needs, setting)


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
        return _run_backward(o, dy, p, needs, decision)
    (W,) = o.base.tensors
    found = lora_backward(dy, o.x, W, o.A, o.B, p, o.s, o.dropout, o.seed, *needs, setting)
    dx, dA, dB = (one if needed else None for one, needed in zip(found, needs, strict=True))
    return dx, dA, dB


def dequantized(base: BaseWeight, after: Tensor) -> Tensor:
    """W [N, K] of a packed base, in its dtype; `after` is x in a forward pass and dy in a backward pass."""
    if not needs_operator(after):
        return dequantize(base)
    W: Tensor = torch.ops.fastlora.dequantize.default(
        base.tensors, base.format, base.N, base.K, base.statics, base.dtype, after
    )
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


def _run_forward(o: Operands, decision: Decision) -> tuple[Tensor, Tensor]:
    if (passes := passes_of(decision.forward.name)) is not None:
        return passes.forward(o)
    return cpu.forward(o) if o.x.is_cpu else vendor.forward(o)


def _run_backward(o: Operands, dy: Tensor, p: Tensor, needs: Needs, decision: Decision) -> Gradients:
    if (passes := passes_of(decision.backward.name)) is not None:
        return passes.backward(o, dy, p, needs)
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
    """dx, dA and dB; one that is not needed is an empty tensor of shape [0]."""
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


def _dequantize(
    packed: list[Tensor],
    format: str,
    N: int,
    K: int,
    statics: list[int],
    dtype: torch.dtype,
    after: Tensor | None = None,
) -> Tensor:
    return dequantize(BaseWeight(format, tuple(packed), N, K, dtype, tuple(statics)))


def _dequantize_fake(
    packed: list[Tensor],
    format: str,
    N: int,
    K: int,
    statics: list[int],
    dtype: torch.dtype,
    after: Tensor | None = None,
) -> Tensor:
    return packed[0].new_empty(N, K, dtype=dtype)


_library.impl("lora_forward", _forward, "CompositeExplicitAutograd")
_library.impl("lora_backward", _backward, "CompositeExplicitAutograd")
_library.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("fastlora::lora_forward", _forward_fake, lib=_library)
torch.library.register_fake("fastlora::lora_backward", _backward_fake, lib=_library)
torch.library.register_fake("fastlora::dequantize", _dequantize_fake, lib=_library)

lora_forward = torch.ops.fastlora.lora_forward.default
lora_backward = torch.ops.fastlora.lora_backward.default


def _register_autocast(kind: str) -> None:
    """Turn autocast off inside the passes, where its conversions would mix dtypes that must be equal.

    The forward operator converts x, W and b to autocast's dtype, as nn.Linear does, because an exported
    program calls the operator itself. The backward operator converts nothing.
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
