"""bitsandbytes' NF4 and FP4 unpacked: W_e = code[nibble_e] * a[e // BLOCK]."""

import triton
import triton.language as tl

BYTES = 2048  # a program: one 16-byte load and four 16-byte stores a thread of four warps, in 16-bit dtypes


@triton.jit
def dequantize_kernel(
    packed_ptr,  # [num_entries / 2] uint8, the earlier entry in the high nibble
    code_ptr,  # [16] fp32
    scales_ptr,  # [blocks] fp32, or uint8 where there is a code2
    code2_ptr,  # [256] fp32, or None
    scales2_ptr,  # [blocks / BLOCK2] fp32, or None
    offset_ptr,  # [] fp32, or None
    out_ptr,  # [num_entries]
    num_entries,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BYTES: tl.constexpr,
):
    """out = W, flat. Compiled without fused multiply-adds, which would round a nested scale only once."""
    first = tl.program_id(0).to(tl.int64) * BYTES
    byte = first + tl.arange(0, BYTES)
    inside = 2 * byte < num_entries
    packed = tl.load(packed_ptr + byte, mask=inside, other=0).to(tl.int32)
    block = 2 * byte // BLOCK
    if code2_ptr is None:
        scale = tl.load(scales_ptr + block, mask=inside, other=0.0)
    else:
        index = tl.load(scales_ptr + block, mask=inside, other=0).to(tl.int32)
        scale2 = tl.load(scales2_ptr + block // BLOCK2, mask=inside, other=0.0)
        scale = tl.load(code2_ptr + index) * scale2 + tl.load(offset_ptr)
    high = tl.load(code_ptr + (packed >> 4)) * scale
    low = tl.load(code_ptr + (packed & 15)) * scale
    entry = 2 * first + tl.arange(0, 2 * BYTES)
    values = tl.reshape(tl.join(high, low), (2 * BYTES,)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + entry, values, mask=entry < num_entries)
