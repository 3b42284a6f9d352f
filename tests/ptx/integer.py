"""Integers, logic and shifts (9.7.1, 9.7.8)."""

from __future__ import annotations

import numpy as np

from tests.ptx.faults import UnknownInstruction
from tests.ptx.machine import Code, Group
from tests.ptx.parse import Instruction, Program
from tests.ptx.registers import UNSIGNED, bits, bits_of, read, typed, write
from tests.ptx.table import instruction

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("and", "or", "xor")
def logic(i: Instruction, program: Program) -> Code:
    """9.7.8.1 to 9.7.8.3: bit by bit; of predicates too."""
    width, function = bits_of(i.opcode[-1]), _LOGIC[i.opcode[0]]
    put, a, b = write(i.operands[0], width), read(i.operands[1], width), read(i.operands[2], width)
    return lambda g: put(g, function(a(g), b(g)))


@instruction("not")
def complement(i: Instruction, program: Program) -> Code:
    """9.7.8.4: every bit inverted."""
    width = bits_of(i.opcode[-1])
    put, a = write(i.operands[0], width), read(i.operands[1], width)
    return lambda g: put(g, ~a(g))


@instruction("shl", "shr")
def shift(i: Instruction, program: Program) -> Code:
    """9.7.8.7, 9.7.8.8: amounts beyond the width count as the width; signed ones fill with the sign."""
    kind = i.opcode[-1]
    width = bits_of(kind)
    put, a, b = write(i.operands[0], width), read(i.operands[1], width), read(i.operands[2], 32)
    left = i.opcode[0] == "shl"

    def code(g: Group) -> None:
        value, amount = typed(a(g), kind), b(g)
        within = np.minimum(amount, width - 1).astype(value.dtype)
        result = bits(value << within if left else value >> within)
        put(
            g,
            result if kind[0] == "s" and not left else np.where(amount >= width, UNSIGNED[width](0), result),
        )

    return code


@instruction("neg", "abs")
def sign(i: Instruction, program: Program) -> Code:
    """9.7.1.11, 9.7.1.10 for integers, 9.7.3.9, 9.7.3.10 for fp32."""
    kind = i.opcode[-1]
    if kind not in ("s16", "s32", "s64", "f32"):
        raise UnknownInstruction(i.text)
    put, a = write(i.operands[0], bits_of(kind)), read(i.operands[1], bits_of(kind))
    function = np.negative if i.opcode[0] == "neg" else np.abs
    return lambda g: put(g, bits(function(typed(a(g), kind))))


@instruction("mad")
def multiply_add(i: Instruction, program: Program) -> Code:
    """9.7.1.4: a b + c; .lo is the low half of the product, .wide all of it."""
    return _product(i, add=True)


def _product(i: Instruction, *, add: bool) -> Code:
    """9.7.1.3: .lo and .hi are halves of the product of two integers, .wide is all of it."""
    kind, part = i.opcode[-1], i.opcode[1]
    width = bits_of(kind)
    wide = np.int64 if kind[0] == "s" else np.uint64
    out = 2 * width if part == "wide" else width
    widths = {"lo": (width,), "hi": (32,) * (not add), "wide": (16, 32)}
    if width not in widths.get(part, ()):
        raise UnknownInstruction(i.text)
    put, a, b = write(i.operands[0], out), read(i.operands[1], width), read(i.operands[2], width)
    c = read(i.operands[3], out) if add else None

    def code(g: Group) -> None:
        x, y = typed(a(g), kind), typed(b(g), kind)
        if part == "lo":
            result = bits(x * y)
        else:
            result = bits(x.astype(wide) * y.astype(wide))
            if part == "hi":
                result = (result >> np.uint64(32)).astype(np.uint32)
            elif width == 16:
                result = result.astype(np.uint32)
        put(g, result if c is None else result + c(g))

    return code


def integer_arithmetic(i: Instruction) -> Code:
    """9.7.1.1, .2, .3, .5, .6, .12, .13: two integers; results wrap around, division cuts toward zero."""
    name, kind = i.opcode[0], i.opcode[-1]
    if name == "mul":
        return _product(i, add=False)
    if len(i.opcode) > 2:
        raise UnknownInstruction(i.text)
    width = bits_of(kind)
    put, a, b = write(i.operands[0], width), read(i.operands[1], width), read(i.operands[2], width)
    if name in ("div", "rem"):

        def divide(g: Group) -> None:
            x, y = typed(a(g), kind), typed(b(g), kind)
            # By zero the result is unspecified, and nothing faults.
            y = np.where(y == 0, y.dtype.type(1), y)
            remainder = np.fmod(x, y)
            put(g, bits(remainder if name == "rem" else (x - remainder) // y))

        return divide
    function = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}[name]
    return lambda g: put(g, bits(function(typed(a(g), kind), typed(b(g), kind))))


@instruction("bfe")
def extract(i: Instruction, program: Program) -> Code:
    """9.7.1.22: `length` bits from `position` on; signed ones are extended by the last bit taken."""
    kind = i.opcode[-1]
    width = bits_of(kind)
    put, a = write(i.operands[0], width), read(i.operands[1], width)
    position, length = (read(operand, 32) for operand in i.operands[2:])
    signed = kind[0] == "s"

    def code(g: Group) -> None:
        value = typed(a(g), kind).astype(object if width == 64 else np.int64)
        at, count = (x(g).astype(np.int64) & 0xFF for x in (position, length))
        field = (value >> at) & ((1 << count) - 1)
        if signed:
            top = np.minimum(at + count - 1, width - 1)
            sign = (value >> np.maximum(top, 0)) & 1
            field = np.where((count > 0) & (sign == 1), field - (1 << count), field)
        put(g, (field & ((1 << width) - 1)).astype(UNSIGNED[width]))

    return code


@instruction("prmt")
def permute(i: Instruction, program: Program) -> Code:
    """9.7.9.7: each 4 bits of c choose one of the 8 bytes of {b, a}, or with their high bit its sign."""
    if i.opcode != ("prmt", "b32"):
        raise UnknownInstruction(i.text)
    put = write(i.operands[0], 32)
    a, b, c = (read(operand, 32) for operand in i.operands[1:])

    def code(g: Group) -> None:
        pool = a(g).astype(np.uint64) | (b(g).astype(np.uint64) << np.uint64(32))
        result = np.uint64(0)
        for byte in range(4):
            choice = (c(g).astype(np.uint64) >> np.uint64(4 * byte)) & np.uint64(15)
            taken = (pool >> ((choice & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            taken = np.where(choice & np.uint64(8), np.where(taken & np.uint64(128), 255, 0), taken)
            result = result | (taken.astype(np.uint64) << np.uint64(8 * byte))
        put(g, result.astype(np.uint32))

    return code


@instruction("lop3")
def lookup(i: Instruction, program: Program) -> Code:
    """9.7.8.6: bit k of the table is the result where a, b, c are the bits of k."""
    if i.opcode != ("lop3", "b32"):
        raise UnknownInstruction(i.text)
    put, table = write(i.operands[0], 32), i.operands[4].value
    a, b, c = (read(operand, 32) for operand in i.operands[1:4])

    def code(g: Group) -> None:
        x, y, z = a(g), b(g), c(g)
        result = np.uint32(0)
        for k in range(8):
            if table >> k & 1:
                result = result | ((x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z))
        put(g, result + np.zeros_like(x))

    return code
