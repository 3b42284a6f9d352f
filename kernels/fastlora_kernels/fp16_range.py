"""Low-rank products of fp16 operands whose intermediate values fp16 cannot hold.

fp16 ends at 65504, and below 2^-14 it loses bits. p and q may lie outside, and so may fp32 and bf16 adapters.
bf16 has fp32's range and needs none of this. tf32 has fp32's range too, and fp16's 11 bits, so it holds an
fp16 x or dy exactly.
"""

import triton
import triton.language as tl


@triton.jit
def _cut_to_tf32(v):
    """fp32 values without the 13 bits that tf32 has not."""
    return (v.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def round_to_tf32(v):
    """v in fp32, rounded to tf32's 11 bits, ties away from zero; matrix units would cut the others off."""
    HAS_MORE: tl.constexpr = v.dtype.primitive_bitwidth > 16
    v = v.to(tl.float32)
    if HAS_MORE:
        # What is cut off is added twice: from half of the last bit on, that makes one more of it.
        v = _cut_to_tf32(v + (v - _cut_to_tf32(v)))
    return v


@triton.jit
def power_of_two(s):
    """(a power of two, its inverse): s times the inverse has a magnitude from 1/2 to 1.

    Within 2^-60 and 2^60, so that both are exact on an fp32 accumulator of fp16 products; s may be beyond.
    """
    # `tl.cast`, because in the interpreter s is a float of Python's.
    bits = tl.cast(tl.cast(s, tl.float32), tl.int32, bitcast=True)
    exponent = ((bits >> 23) & 0xFF) + 1
    exponent = tl.minimum(tl.maximum(exponent, 127 - 60), 127 + 60)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return power, inverse
