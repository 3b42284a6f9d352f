"""The torch operators `torch.ops.fastlora.runs_forward` and `runs_backward`.

As torch.compile, fake tensors and dispatch modes see them: each pass is one operator, whose loop over runs
depends on the numbers of rows and stays inside. A backward pass decides its code as its forward pass did,
from the same operands and backend setting. Triton is imported when a kernel first runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlora.formula.operands import accumulation_dtype
from fastlora.operator_library import make_operator
from fastlora.segments import by_runs, grouped
from fastlora.segments.decide import GROUPED, decide
from fastlora.segments.operands import RunNeeds, RunOperands
from fastlora.segments.plan import Plan


def flat(o: RunOperands) -> tuple[Any, ...]:
    """The operands as the operators take them."""
    return (*o[:6], *o.plan, *o[7:])


def bundled(*flat: Any) -> RunOperands:
    """The operands of an operator, in one bundle again."""
    return RunOperands._make((*flat[:6], Plan._make(flat[6:9]), *flat[9:]))


def _forward(*operands: Any) -> tuple[Tensor, Tensor]:
    o = bundled(*operands)
    return _passes_of(o).forward(o)  # type: ignore[no-any-return]


def _passes_of(o: RunOperands) -> Any:
    """The module whose `forward` and `backward` compute a call."""
    route = decide(o)
    if route.is_fused:
        from fastlora.segments import fused

        return fused
    return grouped if route.name == GROUPED else by_runs


def _forward_fake(*operands: Any) -> tuple[Tensor, Tensor]:
    o = bundled(*operands)
    S, N = o.plan.order.shape[0], o.W.shape[1]
    p = o.x.new_empty((0,) if o.A is None else (S, o.A.shape[1]), dtype=accumulation_dtype(o.x.dtype))
    return o.x.new_empty(S if o.weights is None else o.weights.shape[0], N), p


def _backward(dy: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """dx, dA, dB and dweights; one that is not needed is an empty tensor of shape [0]."""
    o = bundled(*rest[4:])
    found = _passes_of(o).backward(o, dy, p, RunNeeds(*rest[:4]))
    return tuple(dy.new_empty(0) if one is None else one for one in found)


def _backward_fake(dy: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    o = bundled(*rest[4:])
    of = zip((o.x, o.A, o.B, o.weights), rest[:4], strict=True)
    return tuple(
        like.new_empty(like.shape) if needed and like is not None else dy.new_empty(0) for like, needed in of
    )


_OPERANDS = (
    "Tensor x, Tensor W, Tensor? b, Tensor? A, Tensor? B, float s, Tensor offsets, Tensor order, int copies, "
    "bool gathers, Tensor? weights, float dropout, Tensor? seed, str setting"
)

runs_forward = make_operator(
    f"runs_forward({_OPERANDS}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
runs_backward = make_operator(
    "runs_backward(Tensor dy, Tensor p, bool need_dx, bool need_dA, bool need_dB, bool need_dweights, "
    f"{_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
