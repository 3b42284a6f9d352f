"""Host side of the persistent kernels for sm_90 (`fastlora_kernels.hopper`): one launch a pass.

TMA reads A and B too. Where they have x's dtype and rows on 16 bytes they are taken as they are. Else small
copies are made first, those of fp32 adapters on bf16 as two terms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes import fused as plain
from fastlora.routes.architecture import multiprocessors
from fastlora.routes.decide import is_aligned
from fastlora.routes.launch import backward_outputs, on_device, scales
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.hopper import blocks as hopper
from fastlora_kernels.hopper.backward import hopper_backward_kernel
from fastlora_kernels.hopper.blocks import Blocks, blocks_for
from fastlora_kernels.hopper.forward import hopper_forward_kernel

_GROUP = 8  # rows of tiles that run together, as in the tile table


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
    s, power, inverse = scales(float(o.s), x.dtype)
    with on_device(x):
        hopper_forward_kernel[(programs or min(tiles, multiprocessors(x.device) or tiles),)](
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


def backward_of_all(
    o: Operands, dy: Tensor, p: Tensor, blocks: Blocks | None = None, programs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy W + q A, dA = qᵀ x and dB = s dyᵀ p, with q = s dy B.

    Args:
        o: As in `forward`.
        dy: [M, N] in x's dtype, rows on 16 bytes.
        p: [M, r] as `forward` returned it.
        blocks: As in `forward`.
        programs: As in `forward`.

    Returns:
        dx [M, K] in x's dtype, dA [r, K] and dB [N, r] in A's dtype.
    """
    x, (W,), A, B, r = o.x, o.base.tensors, o.A, o.B, o.A.shape[0]
    (M, K), N = x.shape, o.base.N
    blocks = blocks or blocks_for(r, _is_wide(o))
    dx, dA, dB, q = backward_outputs(o, p, EVERYTHING)
    rows, columns = num_blocks(M, blocks.m), num_blocks(K, blocks.c)
    tickets = rows * columns + sum(num_blocks(C, hopper.GRADIENT_COLUMNS) for C in (N, K))
    padded = num_blocks(N, blocks.step) * blocks.step
    with on_device(x):
        hopper_backward_kernel[(programs or min(tickets, multiprocessors(x.device) or tickets),)](
            dy=_blocks_of(dy, blocks.m, blocks.step),
            x=_blocks_of(x, blocks.m, blocks.step),
            W=_blocks_of(W, blocks.step, blocks.c),
            A=_blocks_of(_for_tma(A, x.dtype), blocks.step, blocks.c),
            B=_blocks_of(_for_tma(B, x.dtype, blocks.terms, padded), blocks.step, blocks.r),
            dx=_blocks_of(dx, blocks.m // 2, blocks.store),
            p_ptr=p,
            q_ptr=q,
            dA_ptr=dA,
            dB_ptr=dB,
            s=float(o.s),
            N=N,
            BUFFERS=blocks.buffers,
            **_arguments(x, K, r, blocks, 2 + 2 * rows),
        )
    return dx, dA, dB


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `backward_of_all`; by the plain kernel where a gradient is not needed, or TMA cannot address dy."""
    if needs == EVERYTHING and is_aligned(dy):
        return backward_of_all(o, dy, p)
    return plain.backward(o, dy, p, needs)


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


def _for_tma(matrix: Tensor, dtype: torch.dtype, terms: int = 1, pitch: int = 0) -> Tensor:
    """A or B for TMA, in a dtype: itself, a copy, or two terms, the second `pitch` rows below the first."""
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
