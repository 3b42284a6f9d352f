"""NVFP4 and MXFP4 unpacked: W_nk = v_nk a, with an 8-bit scale a for a block of a row's entries."""

import triton
import triton.language as tl

from fastlora_kernels.dequantize_scaled import value_of

BYTES = 1024  # a program; a multiple of a block's bytes


@triton.jit
def fp4_value(nibble):
    """The fp32 values of 4-bit floats: in fp16 they are 2^-14 of that, subnormal numbers too."""
    bits = ((nibble & 8) << 12 | (nibble & 7) << 9).to(tl.int16)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def power_of_two(exponent):
    """2^(e - 127), NaN for 255; the smallest is a subnormal number."""
    bits = tl.where(exponent == 0, 1 << 22, exponent << 23)
    return tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def dequantize_kernel(
    q_ptr,  # [num_bytes] uint8, the earlier entry in the low nibble
    scale_ptr,  # [N, blocks] uint8: e4m3, or exponents
    whole_ptr,  # [] fp32, or None
    out_ptr,  # [2 num_bytes]
    num_bytes,
    blocks,  # of a row
    POWERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SWIZZLED: tl.constexpr,
    BYTES: tl.constexpr,
):
    """out = W, flat. Powers of two and what they scale are rounded to W's dtype before the product."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    # N * K may exceed 2^31, so the first byte is a 64-bit scalar, and blocks are counted from its row.
    first = tl.program_id(0).to(tl.int64) * BYTES
    byte = first + tl.arange(0, BYTES)
    inside = byte < num_bytes
    packed = tl.load(q_ptr + byte, mask=inside, other=0).to(tl.int32)
    first_block = first // (BLOCK // 2)
    along = (first_block % blocks).to(tl.int32) + tl.arange(0, BYTES) // (BLOCK // 2)
    row, column = first_block // blocks + along // blocks, along % blocks
    if SWIZZLED:
        tile = (row >> 7) * tl.cdiv(blocks, 4) + (column >> 2)
        at = (tile << 9) + ((row & 31) << 4) + (row >> 5 & 3) * 4 + (column & 3)
    else:
        at = row * blocks + column
    code = tl.load(scale_ptr + at, mask=inside, other=0)
    low, high = fp4_value(packed & 15), fp4_value(packed >> 4)
    if POWERS:
        scale = power_of_two(code.to(tl.int32)).to(dtype).to(tl.float32)
    else:
        scale = value_of(code, "e4m3")
        if whole_ptr is not None:
            scale = tl.load(whole_ptr) * scale
    entry = 2 * first + tl.arange(0, 2 * BYTES)
    values = tl.reshape(tl.join(low * scale, high * scale), (2 * BYTES,)).to(dtype)
    tl.store(out_ptr + entry, values, mask=entry < 2 * tl.cast(num_bytes, tl.int64))
