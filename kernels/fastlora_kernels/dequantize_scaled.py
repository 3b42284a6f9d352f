"""8-bit values unpacked: W_nk = (q_nk - z) * a, with a and z of a block of rows and columns."""

import triton
import triton.language as tl

ENTRIES = 4096  # a program: two 16-byte loads of q a thread of four warps


@triton.jit
def dequantize_kernel(
    q_ptr,  # [N, K] int8, uint8 or fp8
    scale_ptr,  # [blocks of rows, blocks of columns], floating
    zero_ptr,  # the same, or None
    out_ptr,  # [N, K]
    num_entries,
    K,
    rows,
    columns,
    grid_columns,
    factor,
    ENTRIES: tl.constexpr,
):
    """out = W. Compiled without fused multiply-adds, so that each step rounds as on the host."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < num_entries
    block = (entry // K // rows) * grid_columns + (entry % K) // columns
    value = tl.load(q_ptr + entry, mask=inside, other=0.0).to(tl.float32)
    if zero_ptr is not None:
        value -= tl.load(zero_ptr + block, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + block, mask=inside, other=0.0).to(tl.float32) * factor
    tl.store(out_ptr + entry, (value * scale).to(out_ptr.dtype.element_ty), mask=inside)
