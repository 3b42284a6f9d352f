"""The operands of one call, in one bundle: checked once at the public edge, then passed on unchanged."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_P = ParamSpec("_P")
_T = TypeVar("_T")


class BaseWeight(NamedTuple):
    """A frozen W [N, K] and the format in which it is stored.

    Attributes:
        format: How `tensors` store W: "plain", where the one tensor is W itself with any strides, or the name
            of a packed format (see fastlora/formats).
        tensors: The tensors that store W.
        N: Columns of y.
        K: Columns of x.
        dtype: The dtype of W's values, which is x's.
        statics: The format's own sizes, such as the length of a block.
        unpacked_from: Of a plain W that is a packed one's values: the format of that.
    """

    format: str
    tensors: tuple[Tensor, ...]
    N: int
    K: int
    dtype: torch.dtype
    statics: tuple[int, ...] = ()
    unpacked_from: str = "plain"

    @property
    def is_packed(self) -> bool:
        """Whether W must be unpacked to be multiplied."""
        return self.format != "plain"


def plain(W: Tensor, unpacked_from: str = "plain") -> BaseWeight:
    """A BaseWeight in the format "plain", from W [N, K]."""
    N, K = W.shape
    return BaseWeight("plain", (W,), N, K, W.dtype, (), unpacked_from)


class Operands(NamedTuple):
    """The operands of y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b.

    Attributes:
        x: [M, K].
        base: W [N, K].
        b: [N] in x's dtype, or None.
        A: [r, K], in any floating dtype.
        B: [N, r], in A's dtype.
        s: The scaling.
        dropout: Probability that an entry of x_d is dropped; kept entries are scaled to compensate.
        seed: [1] int64, the seed of the mask; None without dropout.
    """

    x: Tensor
    base: BaseWeight
    b: Tensor | None
    A: Tensor
    B: Tensor
    s: float
    dropout: float = 0.0
    seed: Tensor | None = None


class Needs(NamedTuple):
    """Which gradients a backward pass must compute."""

    dx: bool = True
    dA: bool = True
    dB: bool = True


EVERYTHING = Needs()
NOTHING = Needs(False, False, False)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of p, q and every accumulator: fp32, and fp64 for an fp64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outranges_fp16(adapter: torch.dtype, x: torch.dtype) -> bool:
    """Whether A and B, and with them p and q, may have values that are out of the range of an fp16 x.

    They are then never rounded to fp16, which ends at 65504 and loses bits below 2^-14. bf16 has fp32's
    range.
    """
    return x == torch.float16 and adapter != torch.float16


def as_rows(x: Tensor) -> Tensor:
    """[..., K] -> [M, K]; a 1-D tensor becomes one row."""
    dims = x.dim()
    if dims == 2:
        return x
    return x.flatten(0, -2) if dims > 2 else x.unsqueeze(0)


def autocasts(x: Tensor) -> bool:
    """Whether nn.Linear, under the autocast in force, would convert this x to another dtype."""
    if not torch._C._is_any_autocast_enabled() or not x.is_floating_point() or x.dtype == torch.float64:
        return False
    return autocast_is_on(x.device.type)


def autocast_is_on(kind: str) -> bool:
    """Whether autocast is in force for a type of device."""
    # torch.compile of torch 2.11 does not trace the second.
    is_known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    return is_known and torch.is_autocast_enabled(kind)


def transforms_active() -> bool:
    """Whether torch.func's transforms or forward-mode differentiation are at work.

    They need separate torch operations, not a Python function with a derivative of its own.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unaffected_by_autocast(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Mark a function whose products autocast must not round to 16 bits, in whatever region it is called."""

    @wraps(function)
    def exact(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling() or not torch._C._is_any_autocast_enabled():
            return function(*args, **kwargs)
        with torch._C._DisableAutocast():
            return function(*args, **kwargs)

    return exact


def check_tensors(x: object, W: object, b: object, A: object, B: object) -> None:
    """Raise TypeError, naming the operand, if one is not a Tensor."""
    for name, tensor in (("x", x), ("W", W), ("A", A), ("B", B)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor; got {type(tensor).__name__}")
    if b is not None and not isinstance(b, Tensor):
        raise TypeError(f"b must be a Tensor or None; got {type(b).__name__}")


def checked_base(x: Tensor, W: Tensor, b: Tensor | None) -> BaseWeight:
    """W as a base weight.

    Raises:
        TypeError: If x is not floating point, or x, W and b differ in dtype.
        ValueError: If x Wᵀ + b cannot be computed: shapes or devices do not fit.
    """
    if W.dim() != 2:
        raise ValueError(f"W must have shape [N, K]; got {list(W.shape)}")
    (N, K), dtype, device = W.shape, W.dtype, x.device
    shape = x.shape
    if not shape or shape[-1] != K:
        raise ValueError(f"x must have shape [..., K={K}]; got {list(shape)}")
    if x.dtype != dtype or not dtype.is_floating_point:
        must = "have" if x.is_floating_point() else "be floating point, in"
        raise TypeError(f"x must {must} W's dtype {dtype}; got {x.dtype}")
    if b is not None and b.shape != (N,):
        raise ValueError(f"b must have shape [N={N}]; got {list(b.shape)}")
    if b is not None and b.dtype != dtype:
        raise TypeError(f"b must have W's dtype {dtype}; got {b.dtype}")
    if W.device != device or (b is not None and b.device != device):
        _refuse_device(x, W=W, b=b)
    return BaseWeight("plain", (W,), N, K, dtype)


def check_adapter(x: Tensor, base: BaseWeight, A: Tensor, B: Tensor) -> None:
    """Raise TypeError or ValueError, naming the argument, unless s (x Aᵀ) Bᵀ is [..., N]."""
    shape, dtype = A.shape, A.dtype
    if len(shape) != 2 or shape[1] != base.K:
        raise ValueError(f"A must have shape [r, K={base.K}]; got {list(shape)}")
    if B.shape != (base.N, shape[0]):
        raise ValueError(f"B must have shape [N={base.N}, r={shape[0]}]; got {list(B.shape)}")
    if not dtype.is_floating_point:
        raise TypeError(f"A must be floating point; got {dtype}")
    if B.dtype != dtype:
        raise TypeError(f"B must have A's dtype {dtype}; got {B.dtype}")
    device = x.device
    if A.device != device or B.device != device:
        _refuse_device(x, A=A, B=B)


def _refuse_device(x: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}; got {tensor.device}")
