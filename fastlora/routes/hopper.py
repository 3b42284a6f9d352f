"""Host side of the persistent kernels for sm_90 (`fastlora_kernels.hopper`): operands for TMA, one launch a pass.

A and B are taken as they are where they have x's dtype and rows on 16 bytes; else small copies are made first,
those of fp32 adapters on bf16 as two terms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastlora.formula.operands import Operands
from fastlora.routes.decide import is_aligned
from fastlora.routes.fused import _on_device
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.hopper import blocks as hopper
from fastlora_kernels.hopper.blocks import Blocks, blocks_for
from fastlora_kernels.hopper.forward import hopper_forward_kernel

_GROUP = 8  # rows of tiles that run together, as in the tile table
# Powers of two beyond these are not exact on an accumulator of fp16 products.
_MOST_EXPONENT = 60


def forward(o: Operands, blocks: Blocks | None = None, programs: int | None = None) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b [M, N] in x's dtype and p = x Aᵀ [M, r] in fp32.

    Args:
        o: Operands that `blocks.refusal` lets through.
        blocks: Block shapes; None means those for the rank.
        programs: Of the launch; None means one for each multiprocessor, as many as there are tiles at most.
    """
    x, (W,), r = o.x, o.base.tensors, o.A.shape[0]
    (M, K), N = x.shape, o.base.N
    blocks = blocks or blocks_for(r, _is_wide(o))
    y = x.new_empty(M, N)
    p = torch.empty(M, r, device=x.device, dtype=torch.float32)
    rows, tiles = num_blocks(M, blocks.m), num_blocks(M, blocks.m) * num_blocks(N, blocks.c)
    s, power, inverse = _scales(o)
    with _on_device(x):
        hopper_forward_kernel[(programs or min(tiles, _multiprocessors(x)),)](
            x=_blocks_of(x, blocks.m, blocks.step),
            W=_blocks_of(W, blocks.c, blocks.step),
            A=_blocks_of(_for_tma(o.A, x.dtype, blocks.terms, blocks.r), blocks.r, blocks.step),
            B=_blocks_of(_for_tma(o.B, x.dtype), blocks.c, blocks.step),
            y=_blocks_of(y, blocks.m // 2, blocks.store),
            b_ptr=None if o.b is None else o.b.contiguous(),
            p_ptr=p,
            s=s,
            power=power,
            inverse=inverse,
            N=N,
            **_arguments(x, K, r, blocks, 2 + 2 * rows),
        )
    return y, p


def _arguments(x: Tensor, K: int, r: int, blocks: Blocks, counters: int) -> dict[str, Any]:
    """The arguments that both passes have."""
    return {
        "workspace_ptr": torch.zeros(counters, device=x.device, dtype=torch.int32),
        "M": x.shape[0],
        "K": K,
        "r": r,
        "BLOCK_M": blocks.m,
        "BLOCK_C": blocks.c,
        "STEP": blocks.step,
        "BLOCK_R": blocks.r,
        "TERMS": blocks.terms,
        "STORE": blocks.store,
        "GROUP": _GROUP,
        "STAGES": blocks.stages,
        "MULTIPLY_REGISTERS": hopper.MULTIPLY_REGISTERS,
        "LOAD_REGISTERS": hopper.LOAD_REGISTERS,
        "num_warps": hopper.WARPS,
        "enable_fp_fusion": True,
    }


def _is_wide(o: Operands) -> bool:
    return o.A.dtype != o.x.dtype


def _scales(o: Operands) -> tuple[float, float | None, float | None]:
    """(s, None, None); in fp16, which cannot hold s p where it holds p, a power of two is taken out of s."""
    s = float(o.s)
    if o.x.dtype != torch.float16:
        return s, None, None
    exponent = min(max(math.frexp(s)[1], -_MOST_EXPONENT), _MOST_EXPONENT)
    return math.ldexp(s, -exponent), math.ldexp(1.0, exponent), math.ldexp(1.0, -exponent)


def _for_tma(matrix: Tensor, dtype: torch.dtype, terms: int = 1, pitch: int = 0) -> Tensor:
    """A or B for TMA, in a dtype: itself, a copy, or two terms of it, the second `pitch` rows below the first."""
    if terms == 1 and matrix.dtype == dtype and is_aligned(matrix):
        return matrix
    rows, columns = matrix.shape
    wide = torch.zeros(max(rows, terms * pitch), -(-columns // 8) * 8, device=matrix.device, dtype=dtype)
    found = wide[:, :columns]
    high = found[:rows].copy_(matrix)
    if terms == 2:
        found[pitch : pitch + rows] = matrix - high
    return found


def _blocks_of(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A tensor descriptor of [rows, columns] blocks of a matrix of 16 bits."""
    layout = gl.NVMMASharedLayout(min(128, 2 * columns), 16, 2)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count
