"""A and B for kernels that read them by TMA: in the dtype of x, rows on 16 bytes, wide ones as two terms."""

import triton
import triton.language as tl

ELEMENTS = tl.constexpr(2048)  # of a program


@triton.jit
def _store_terms(matrix, out_ptr, block, rows, columns, pitch, width, TERMS: tl.constexpr):
    offsets = block * ELEMENTS + tl.arange(0, ELEMENTS)
    row = offsets // width
    column = offsets % width
    inside = (row < rows) & (column < columns)
    places = row.to(tl.int64) * matrix[1] + column.to(tl.int64) * matrix[2]
    value = tl.load(matrix[0] + places, mask=inside, other=0.0).to(tl.float32)
    high = value.to(out_ptr.dtype.element_ty)
    exists = row < pitch
    tl.store(out_ptr + offsets, high, mask=exists)
    if TERMS == 2:
        low = (value - high.to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + pitch * width + offsets, low, mask=exists)


@triton.jit(do_not_specialize=["pitch_A", "pitch_B", "blocks_A", "num_counters"])
def adapter_terms_kernel(
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    A_out_ptr,  # TERMS_A matrices [pitch_A, width_A], one below the other; A is the upper left part of each
    B_out_ptr,  # the same of B
    workspace_ptr,  # int32, which becomes zero
    r,
    K,
    N,
    pitch_A,
    pitch_B,
    width_A,
    width_B,
    blocks_A,  # the programs that write A, ELEMENTS of each term; the others write B
    num_counters,
    TERMS_A: tl.constexpr,
    TERMS_B: tl.constexpr,
):
    """The first term of a matrix is it rounded, the second what is left; beyond the matrix they are zero."""
    program = tl.program_id(0)
    if program < blocks_A:
        _store_terms(A, A_out_ptr, program, r, K, pitch_A, width_A, TERMS_A)
    else:
        _store_terms(B, B_out_ptr, program - blocks_A, N, r, pitch_B, width_B, TERMS_B)
    counters = program * ELEMENTS + tl.arange(0, ELEMENTS)
    tl.store(workspace_ptr + counters, 0, mask=counters < num_counters)
