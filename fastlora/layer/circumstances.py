"""What the output of a layer depends on beside x and its own state, and whether any of it changed."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formula.grouped import Projection
from fastlora.formula.operands import BaseWeight, transforms_active
from fastlora.routes import backend

_NAMES: Final = (
    "the grad mode changed",
    "the inference mode changed",
    "x.requires_grad changed",
    "the backend setting changed",
    "autocast changed",
    "the dispatch modes changed",
    "the hooks on saved tensors changed, as at the border of activation checkpointing",
)


def circumstances(x: Tensor) -> tuple[Any, ...]:
    """What an output depends on beside x and the layer; `change` names the difference of two."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        x.requires_grad,
        backend.get_backend(),
        torch._C._is_any_autocast_enabled() and _autocast(x),
        torch._C._len_torch_dispatch_stack(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


def change(now: tuple[Any, ...], before: tuple[Any, ...]) -> str | None:
    """The first difference of two circumstances, as words; None if there is none."""
    if now == before:
        return None
    return next(why for why, one, other in zip(_NAMES, now, before, strict=True) if one != other)


def why_alone(x: Tensor) -> str | None:
    """Why a call with this x is not grouped, whatever the layers."""
    if type(x) is not Tensor or x.is_nested:
        return "x is not a plain tensor"
    if transforms_active():
        return "a torch.func transform or forward-mode differentiation is at work"
    return None


def why_alone_now(x: Tensor) -> str | None:
    """As `why_alone`, outside of compiled code."""
    if (why := why_alone(x)) is not None:
        return why
    if torch._C._get_tracing_state():
        return "the model is being traced"
    return "x is an inference tensor, whose changes cannot be seen" if x.is_inference() else None


# Spelled out, as loops over a few tensors take longer than what they ask.
def is_same(one: Projection, other: Projection) -> bool:
    """Whether a layer computes the same, but for changes in place of its parameters."""
    W, b, A, B, s, dropout = one
    return (
        (W is other[0] or _is_same_packed(W, other[0]))
        and b is other[1]
        and A is other[2]
        and B is other[3]
        and s == other[4]
        and dropout == other[5]
    )


def versions(one: Projection) -> int:
    """Grows with every change in place of a parameter.

    Raises:
        RuntimeError: If one is an inference tensor, whose changes cannot be seen.
    """
    W, b, A, B, _, _ = one
    total: int = sum(tensor._version for tensor in W.tensors) if isinstance(W, BaseWeight) else W._version
    if b is not None:
        total += b._version
    return total if A is None or B is None else total + A._version + B._version


def _is_same_packed(one: object, other: object) -> bool:
    """Whether two are the same memory read in the same way: a packed W is described anew at each call."""
    if not (isinstance(one, BaseWeight) and isinstance(other, BaseWeight)):
        return False
    places = [[tensor.data_ptr() for tensor in W.tensors] for W in (one, other)]
    return places[0] == places[1] and one._replace(tensors=()) == other._replace(tensors=())


def _autocast(x: Tensor) -> object:
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
