"""Host side of the persistent kernels for sm_90 (`fastlora_kernels.hopper`): one launch a pass.

TMA reads A and B too. Where they have x's dtype and rows on 16 bytes they are taken as they are. Else one
small launch makes copies first, those of fp32 adapters on bf16 as two terms.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes import fused as plain
from fastlora.routes.architecture import multiprocessors
from fastlora.routes.decide import is_aligned, problem_of
from fastlora.routes.launch import descriptor, on_device, scales
from fastlora.routes.relaunch import launch, on_16_bytes
from fastlora_kernels.adapter_terms import ELEMENTS, adapter_terms_kernel
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.hopper import blocks as hopper
from fastlora_kernels.hopper.backward import hopper_backward_kernel
from fastlora_kernels.hopper.blocks import Blocks, blocks_for
from fastlora_kernels.hopper.forward import hopper_forward_kernel

_OPTIONS = {"num_warps": hopper.WARPS, "enable_fp_fusion": True}


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
        small = _small(
            o, 2 + 2 * rows, terms=(blocks.terms, 1), pitch=(blocks.r if blocks.terms == 2 else r, N)
        )
        arguments = dict(
            x=_blocks_of(x, blocks.m, blocks.step),
            W=_blocks_of(W, blocks.c, blocks.step),
            A=_blocks_of(small.A, blocks.r, blocks.step),
            B=_blocks_of(small.B, blocks.c, blocks.step),
            y=_blocks_of(y, blocks.m // 2, blocks.store),
            b_ptr=None if o.b is None else o.b.contiguous(),
            p_ptr=p,
            s=s,
            power=power,
            inverse=inverse,
            N=N,
            **_arguments(x, K, r, blocks, small.counters),
        )
        key = (*_key(o, blocks), on_16_bytes(arguments["b_ptr"]))
        launch(
            hopper_forward_kernel,
            programs or min(tiles, multiprocessors(x.device) or tiles),
            key,
            arguments,
            _OPTIONS,
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
    dx, dA, dB = x.new_empty(M, K), A.new_empty(A.shape), B.new_empty(B.shape)
    rows, columns = num_blocks(M, blocks.m), num_blocks(K, blocks.c)
    programs = programs or min(rows * columns, multiprocessors(x.device) or rows * columns)
    gradients = sum(num_blocks(C, hopper.GRADIENT_COLUMNS) for C in (N, K))
    padded = num_blocks(N, blocks.step) * blocks.step
    terms = x.new_empty(2 * blocks.terms * rows * blocks.m, blocks.r)
    sums = torch.empty(gradients * hopper.GRADIENT_COLUMNS, blocks.r, device=x.device, dtype=torch.float32)
    counters = 2 + 2 * rows + 2 * gradients
    with on_device(x):
        small = _small(o, counters, terms=(1, blocks.terms), pitch=(r, padded if blocks.terms == 2 else N))
        arguments = dict(
            dy=_blocks_of(dy, blocks.m, blocks.step),
            x=_blocks_of(x, blocks.m, blocks.step),
            W=_blocks_of(W, blocks.step, blocks.c),
            A=_blocks_of(small.A, blocks.step, blocks.c),
            B=_blocks_of(small.B, blocks.step, blocks.r),
            dx=_blocks_of(dx, blocks.m // 2, blocks.store),
            terms=_blocks_of(terms, blocks.m, blocks.r),
            p_ptr=p,
            terms_ptr=terms,
            sums_ptr=sums,
            dA_ptr=dA,
            dB_ptr=dB,
            s=float(o.s),
            N=N,
            **_arguments(x, K, r, blocks, small.counters),
        )
        launch(hopper_backward_kernel, programs, (*_key(o, blocks), on_16_bytes(p)), arguments, _OPTIONS)
    return dx, dA, dB


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `backward_of_all`; by the plain kernel where a gradient is not needed, or TMA cannot address dy."""
    if needs == EVERYTHING and is_aligned(dy):
        return backward_of_all(o, dy, p)
    return plain.backward(o, dy, p, needs)


def _arguments(x: Tensor, K: int, r: int, blocks: Blocks, counters: Tensor) -> dict[str, Any]:
    """The arguments that both passes have."""
    return {
        "workspace_ptr": counters,
        "M": x.shape[0],
        "K": K,
        "r": r,
        "BLOCK_M": blocks.m,
        "BLOCK_C": blocks.c,
        "STEP": blocks.step,
        "BLOCK_R": blocks.r,
        "TERMS": blocks.terms,
        "STORE": blocks.store,
        "BUFFERS": blocks.buffers,
        "GROUP": blocks.group,
        "STAGES": blocks.stages,
        "MULTIPLY_REGISTERS": hopper.MULTIPLY_REGISTERS,
        "LOAD_REGISTERS": hopper.LOAD_REGISTERS,
    }


def _key(o: Operands, blocks: Blocks) -> tuple[Hashable, ...]:
    """What decides on the code of a pass, which M does not; see `relaunch.launch`."""
    return (o.x.device, problem_of(o)[1:], blocks)


def _is_wide(o: Operands) -> bool:
    return o.A.dtype != o.x.dtype


class _Small(NamedTuple):
    """What a launch reads beside x and W: A and B as TMA takes them, and the counters, which are zero."""

    A: Tensor
    B: Tensor
    counters: Tensor


def _small(o: Operands, counters: int, *, terms: tuple[int, int], pitch: tuple[int, int]) -> _Small:
    """A and B themselves where they have x's dtype and rows on 16 bytes, else copies made by one launch.

    Args:
        o: The operands.
        counters: How many there are.
        terms: Of A and of B, as what they are multiplied by has none of its own.
        pitch: Rows of a term of A and of B, at least those of the matrix; the others are zero.
    """
    x, A, B = o.x, o.A, o.B
    (r, K), N = A.shape, B.shape[0]
    if A.dtype == x.dtype and is_aligned(A) and is_aligned(B):
        return _Small(A, B, torch.zeros(counters, device=x.device, dtype=torch.int32))
    widths = [num_blocks(columns, 8) * 8 for columns in (K, r)]
    A_out, B_out = (x.new_empty(t * p, w) for t, p, w in zip(terms, pitch, widths, strict=True))
    workspace = torch.empty(counters, device=x.device, dtype=torch.int32)
    blocks_A, blocks_B = (num_blocks(p * w, ELEMENTS.value) for p, w in zip(pitch, widths, strict=True))
    arguments = {
        "A": (A, *A.stride()),
        "B": (B, *B.stride()),
        "A_out_ptr": A_out,
        "B_out_ptr": B_out,
        "workspace_ptr": workspace,
        "r": r,
        "K": K,
        "N": N,
        "pitch_A": pitch[0],
        "pitch_B": pitch[1],
        "width_A": widths[0],
        "width_B": widths[1],
        "blocks_A": blocks_A,
        "num_counters": counters,
        "TERMS_A": terms[0],
        "TERMS_B": terms[1],
    }
    key = (x.device, x.dtype, A.dtype, r, K, N, A.stride(), B.stride(), terms, on_16_bytes(A, B))
    programs = max(blocks_A + blocks_B, num_blocks(counters, ELEMENTS.value))
    launch(adapter_terms_kernel, programs, key, arguments, {})
    return _Small(A_out[:, :K], B_out[:, :r], workspace)


def _blocks_of(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A tensor descriptor of [rows, columns] blocks of a matrix of 16 bits."""
    return descriptor(matrix, (rows, columns), TensorDescriptor, layout=_layout(min(128, 2 * columns)))


@functools.cache
def _layout(swizzled: int) -> Any:
    return gl.NVMMASharedLayout(swizzled, 16, 2)
