"""What PEFT's LoRA layer may be called with, for fused code to compute the same; see also `peft_rules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.formula.operands import BaseWeight, autocast_is_on, autocasts, transforms_active
from fastlora.integrations.peft_rules import Operands, shape_of

# Arguments that PEFT passes to every LoRA layer; a value of None has no effect.
_OPTIONAL_ARGUMENTS = ("adapter_names", "alora_offsets")
_AUTOCAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


def why_not_fused(
    operands: Operands, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Why these arguments need PEFT's own forward; None if they do not."""
    if args or any(name not in _OPTIONAL_ARGUMENTS or kwargs[name] is not None for name in kwargs):
        return "there are arguments beside x"
    if type(x) not in (Tensor, nn.Parameter) or x.layout is not torch.strided or x.is_nested:
        return "x is not a plain tensor"
    if transforms_active():
        return "a torch.func transform or forward-mode differentiation is at work"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace is at work"
    _, K, device = shape_of(operands.W)
    if x.dim() == 0 or x.shape[-1] != K or x.device != device:
        return "x does not fit the weight"
    return _dtype_obstacle(operands, x)


def _dtype_obstacle(operands: Operands, x: Tensor) -> str | None:
    """Why these dtypes need PEFT's own forward; None if they do not.

    Supported are one dtype for all, fp32 adapters on a 16-bit base, and either of these under autocast.
    """
    W, b, A, B, _, _, m, b_B = operands
    kind = x.device.type
    base = [x.dtype]
    if not isinstance(W, BaseWeight):
        base += [W.dtype, W.dtype if b is None else b.dtype]
    elif W.dtype != (torch.get_autocast_dtype(kind) if autocasts(x) else x.dtype):
        return "the base layer computes in another dtype than the update"
    if autocast_is_on(kind):
        dtype = torch.get_autocast_dtype(kind)
        fits = all(one in _AUTOCAST_DTYPES for one in base)
    else:
        dtype = W.dtype
        fits = dtype in arguments.DTYPES and all(one == dtype for one in base)
    fits = fits and all(one is None or one.dtype == A.dtype for one in (B, m, b_B))
    if fits and (A.dtype == dtype or (A.dtype == torch.float32 and dtype in HALVES)):
        return None
    return "the dtypes are not ones that are fused"
