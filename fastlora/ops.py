"""The formula as torch operators, `torch.ops.fastlora.lora_forward` and `lora_backward`.

Each calls the kernels or the torch reference, as `plan.route_for` decides by the operands and by `backend`.
That is the setting of a forward, which its backward is given too, as the two paths draw other masks; None
means the setting in force. The fake versions give torch.compile and torch.export the shapes. Defined with
Library.define, whose call costs about half of a `custom_op`'s; `forward` and `backward` save that too where
nobody needs to see an operator. `triton` is imported only when a kernel first runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fastlora import reference
from fastlora.backend import choose_path, get_backend
from fastlora.masks import dropout_constants

if TYPE_CHECKING:
    from fastlora.plan import Plan

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
    if _is_plain_cpu(x, backend):
        return reference.forward(x, W, b, A, B, s, dropout, seed)
    plan = _kernel_plan("forward", backend, (x, W), A, dropout)
    if plan is None:
        return reference.forward(x, W, b, A, B, s, dropout, seed)
    from fastlora import launch

    return launch.forward(x, W, b, A, B, s, dropout, seed, plan)


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
    return x.new_empty(M, N), x.new_empty(M, r, dtype=reference.accumulation_dtype(x.dtype))


def _gradients(
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    operands = (dy, x, W, A, B, p, s, dropout, seed)
    if _is_plain_cpu(x, backend):
        return reference.backward(*operands, need_dx=need_dx, need_dA=need_dA, need_dB=need_dB)
    plan = _kernel_plan("backward", backend, (x, W, dy), A, dropout, need_dx, need_dA, need_dB)
    if plan is None:
        return reference.backward(*operands, need_dx=need_dx, need_dA=need_dA, need_dB=need_dB)
    from fastlora import launch

    return launch.backward(*operands, plan, need_dx=need_dx, need_dA=need_dA, need_dB=need_dB)


def _backward(
    dy: Tensor, x: Tensor, W: Tensor, A: Tensor, B: Tensor, p: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients as `reference.backward` gives them; one that is not needed has shape [0]."""
    dx, dA, dB = _gradients(dy, x, W, A, B, p, *rest)
    return (
        x.new_empty(0) if dx is None else dx,
        A.new_empty(0) if dA is None else dA,
        B.new_empty(0) if dB is None else dB,
    )


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


def _kernel_plan(
    direction: str,
    backend: str | None,
    rows: tuple[Tensor, ...],
    A: Tensor,
    dropout: float,
    *need: bool,
) -> Plan | None:
    """How the kernels are launched for the matrices that TMA would read, x and W first; None for torch."""
    x, W, *_ = rows
    path = choose_path(x.device, x.dtype, backend)
    if path.name == "torch":
        return None
    from fastlora.plan import Needs, architecture_of, is_aligned, route_for

    needs = Needs(dropout_constants(dropout)[0] > 0, *need)
    return route_for(
        direction,
        path,
        architecture_of(x.device),
        x.dtype,
        A.dtype,
        (*x.shape, W.shape[0], A.shape[0]),
        needs,
        aligned=all(map(is_aligned, rows)),
        setting=backend,
    ).plan


def _is_plain_cpu(x: Tensor, backend: str | None) -> bool:
    """What `choose_path` says of most CPU tensors, in a tenth of its time."""
    return x.is_cpu and (backend or get_backend()) in ("auto", "torch")


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


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y [M, N] and p [M, r] as `reference.forward` gives them, by the operator wherever one is needed."""
    if _needs_no_operator(x):
        return _forward(x, W, b, A, B, s, dropout, seed, backend)
    y, p = lora_forward(x, W, b, A, B, s, dropout, seed, backend)
    return y, p


def backward(
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
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dA and dB as `reference.backward` gives them, by the operator wherever one is needed.

    In grad mode it is: a derivative of these may be asked for, and the operator has one.
    """
    if _needs_no_operator(x) and not torch.is_grad_enabled():
        return _gradients(dy, x, W, A, B, p, s, dropout, seed, need_dx, need_dA, need_dB, backend)
    dx, dA, dB = lora_backward(dy, x, W, A, B, p, s, dropout, seed, need_dx, need_dA, need_dB, backend)
    return dx if need_dx else None, dA if need_dA else None, dB if need_dB else None


def _needs_no_operator(x: Tensor) -> bool:
    """Whether the passes can be called directly: eagerly, on tensors that hold values.

    The pair of operators costs the host 20 us a layer and step. But a compiler must see them whole, and what
    holds no values or wraps them (meta and fake tensors, DTensor) must be asked. A dispatch mode must too:
    selective checkpointing keeps what operators return, and the reference goes on to add onto that. Under
    autocast, where a backward pass may run, the operators keep it out.
    """
    return (
        type(x) is Tensor
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_any_autocast_enabled()
    )
