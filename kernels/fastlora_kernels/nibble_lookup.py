"""The values of 4-bit codes in registers: by PTX's prmt on Nvidia's GPUs, by selections elsewhere.

A load of each value would go through memory. prmt makes a word of four bytes out of eight, each chosen by
four bits of its last operand: four codes of W's packed word, as they lie there. So the 16 values are held as
planes, one for each of the four bytes of an fp32, and a plane as four words of four values each. Codes below
8 choose out of its first two words, the others out of its last two; their bit 3 says which. Eight more prmt
put the bytes of the planes together. Compiled for sm_90, a step of the loop of `few_rows.py` takes 409
instructions so, and 908 with selections.

Source: PTX ISA, 9.7.9.7, `prmt`.
"""

import triton
import triton.language as tl


def _assembly() -> str:
    """$0 to $3 are the values of the high nibbles of $8's bytes, $4 to $7 those of the low ones.

    $9 + 4 n is word n of the planes: Triton passes each of them four times, once for each byte of $8.
    """
    lines = [
        "{",
        ".reg .b32 within, upper, side, first, last, b0, b1, b2, b3, c0, c1, c2, c3;",
        "and.b32 within, $8, 0x77777777;",
        # In `upper` 9 stands where bit 3 is set, which takes the sign of byte 1 of 0x8000; else 0: byte 0.
        "shr.u32 upper, $8, 3;",
        "and.b32 upper, upper, 0x11111111;",
        "mul.lo.u32 upper, upper, 9;",
    ]
    for half in range(2):
        if half:
            lines += ["shr.u32 within, within, 16;", "shr.u32 upper, upper, 16;"]
        lines += ["prmt.b32 side, 0x8000, 0x8000, upper;"]
        for byte in range(4):
            words = [f"${9 + 4 * n}" for n in range(4 * byte, 4 * byte + 4)]
            lines += [
                f"prmt.b32 first, {words[0]}, {words[1]}, within;",
                f"prmt.b32 last, {words[2]}, {words[3]}, within;",
                f"lop3.b32 b{byte}, first, last, side, 0xd8;",  # last where side is set, else first
            ]
        lines += ["prmt.b32 c0, b0, b1, 0x5140;", "prmt.b32 c1, b2, b3, 0x5140;"]
        lines += ["prmt.b32 c2, b0, b1, 0x7362;", "prmt.b32 c3, b2, b3, 0x7362;"]
        for nibble, (words, bytes_) in enumerate(
            (("c0, c1", "0x5410"), ("c0, c1", "0x7632"), ("c2, c3", "0x5410"), ("c2, c3", "0x7632"))
        ):
            out = 2 * half + nibble // 2 + (0 if nibble % 2 else 4)
            lines += [f"prmt.b32 ${out}, {words}, {bytes_};"]
    return "\n".join([*lines, "}"])


_ASSEMBLY = tl.constexpr(_assembly())
_OPERANDS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * (1 + 16 * 4)))


@triton.jit
def table_of(code_ptr, PERMUTED: tl.constexpr):
    """The 16 values of a 4-bit code, in registers: as planes, or four by four."""
    if PERMUTED:
        table = _plane(code_ptr, 0), _plane(code_ptr, 8), _plane(code_ptr, 16), _plane(code_ptr, 24)
    else:
        table = (
            (tl.load(code_ptr), tl.load(code_ptr + 1), tl.load(code_ptr + 2), tl.load(code_ptr + 3)),
            (tl.load(code_ptr + 4), tl.load(code_ptr + 5), tl.load(code_ptr + 6), tl.load(code_ptr + 7)),
            (tl.load(code_ptr + 8), tl.load(code_ptr + 9), tl.load(code_ptr + 10), tl.load(code_ptr + 11)),
            (tl.load(code_ptr + 12), tl.load(code_ptr + 13), tl.load(code_ptr + 14), tl.load(code_ptr + 15)),
        )
    return table


@triton.jit
def _plane(code_ptr, SHIFT: tl.constexpr):
    """One byte of all 16 values."""
    return (
        _word(code_ptr, SHIFT),
        _word(code_ptr + 4, SHIFT),
        _word(code_ptr + 8, SHIFT),
        _word(code_ptr + 12, SHIFT),
    )


@triton.jit
def _word(code_ptr, SHIFT: tl.constexpr):
    """One byte of four values, the first lowest."""
    word = _byte(code_ptr, SHIFT) | (_byte(code_ptr + 1, SHIFT) << 8)
    return word | (_byte(code_ptr + 2, SHIFT) << 16) | (_byte(code_ptr + 3, SHIFT) << 24)


@triton.jit
def _byte(value_ptr, SHIFT: tl.constexpr):
    return (tl.load(value_ptr).to(tl.uint32, bitcast=True) >> SHIFT) & 255


@triton.jit
def looked_up(table, packed, PERMUTED: tl.constexpr):
    """The values of the high nibbles of bytes, and those of the low ones, in fp32."""
    if PERMUTED:
        b0, b1, b2, b3 = table
        high, low = tl.inline_asm_elementwise(
            _ASSEMBLY,
            _OPERANDS,
            [
                packed,
                b0[0], b0[1], b0[2], b0[3], b1[0], b1[1], b1[2], b1[3],
                b2[0], b2[1], b2[2], b2[3], b3[0], b3[1], b3[2], b3[3],
            ],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=4,
        )  # fmt: skip
    else:
        nibbles = packed.to(tl.int32)
        high, low = _selected(table, nibbles >> 4), _selected(table, nibbles & 15)
    return high, low


@triton.jit
def _selected(table, nibble):
    bit0, bit1 = (nibble & 1) != 0, (nibble & 2) != 0
    bit2, bit3 = (nibble & 4) != 0, (nibble & 8) != 0
    quarters = (
        _one_of_four(table[0], bit0, bit1),
        _one_of_four(table[1], bit0, bit1),
        _one_of_four(table[2], bit0, bit1),
        _one_of_four(table[3], bit0, bit1),
    )
    return _one_of_four(quarters, bit2, bit3)


@triton.jit
def _one_of_four(four, low, high):
    """four[low + 2 high], of bits as conditions."""
    return tl.where(high, tl.where(low, four[3], four[2]), tl.where(low, four[1], four[0]))
