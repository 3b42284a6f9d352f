"""What every launch of the kernels takes: matrices as Triton reads and writes them, scratch, the device."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastlora.formula.operands import Needs, Operands
from fastlora.routes.backend import BackendError
from fastlora.routes.decide import is_aligned
from fastlora.routes.plan import Plan

# Powers of two beyond these are not exact on an accumulator of fp16 products.
_MOST_EXPONENT: Final = 60


def readable(matrix: Tensor, block: tuple[int, int] = (0, 0), tma: bool = False) -> Any:
    """A matrix for a kernel to read: a tensor descriptor of blocks, or (pointer, strides)."""
    if tma:
        return descriptor(matrix, block)
    return matrix, *matrix.stride()


def writable(matrix: Tensor, block: tuple[int, int], tma: bool) -> Any:
    """A contiguous matrix to be written: a tensor descriptor of blocks if it is aligned, else its pointer."""
    return descriptor(matrix, block) if tma and is_aligned(matrix) else matrix


def descriptor(matrix: Tensor, block: tuple[int, int], kind: type = TensorDescriptor, **more: Any) -> Any:
    """A tensor descriptor of blocks, without the checks of its constructor: an aligned matrix passes them.

    Args:
        matrix: As `is_aligned` asks for.
        block: Rows and columns.
        kind: Of descriptor.
        more: Its other attributes.
    """
    made: Any = object.__new__(kind)
    made.__dict__.update(
        base=matrix, shape=matrix.shape, strides=matrix.stride(), block_shape=[*block], **more
    )
    return made


def scratch_for(plan: Plan, x: Tensor, *names: str, otherwise: Tensor | None = None) -> Tensor | None:
    """Scratch memory for the split-K partial tiles of these tasks; `otherwise` if none is split."""
    size = plan.scratch_size(*names)
    return torch.empty(size, device=x.device, dtype=torch.float32) if size else otherwise


def backward_outputs(o: Operands, p: Tensor, needs: Needs) -> tuple[Any, Any, Any, Tensor]:
    """What a backward pass writes: dx [M, K], dA [r, K] and dB [N, r], None if not needed; and q, as p."""
    x, A, B = o.x, o.A, o.B
    dx = torch.empty(x.shape[0], o.base.K, device=x.device, dtype=x.dtype) if needs.dx else None
    dA = torch.empty(A.shape, device=x.device, dtype=A.dtype) if needs.dA else None
    dB = torch.empty(B.shape, device=x.device, dtype=B.dtype) if needs.dB else None
    return dx, dA, dB, torch.empty_like(p) if needs.dx or needs.dA else p


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make x's device the current one, on which Triton launches.

    Raises:
        BackendError: If the interpreter is asked for after Triton compiled its own functions.
    """
    if x.device.type == "cpu" and isinstance(tl.cdiv, triton.runtime.JITFunction):
        raise BackendError("TRITON_INTERPRET=1 must be set before triton is first imported")
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def scales(s: float, dtype: torch.dtype) -> tuple[float, float | None, float | None]:
    """(s, None, None); in fp16, which cannot hold s p where it holds p, a power of two is taken out of s."""
    if dtype != torch.float16:
        return s, None, None
    exponent = min(max(math.frexp(s)[1], -_MOST_EXPONENT), _MOST_EXPONENT)
    return math.ldexp(s, -exponent), math.ldexp(1.0, exponent), math.ldexp(1.0, -exponent)
