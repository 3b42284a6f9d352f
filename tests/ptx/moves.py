"""Moving, choosing, comparing and converting (9.7.6, 9.7.7, 9.7.9)."""

from __future__ import annotations

import numpy as np

from tests.ptx import floating
from tests.ptx.faults import UnknownInstruction
from tests.ptx.machine import Code, Group
from tests.ptx.parse import Instruction, Program, Vector
from tests.ptx.registers import LANES, SIGNED, UNSIGNED, bits, bits_of, read, typed, write
from tests.ptx.table import instruction

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}


@instruction("mov")
def move(i: Instruction, program: Program) -> Code:
    """9.7.9.4, 9.7.9.5: a register; or one wide register from several, or several from one, lowest first."""
    width = bits_of(i.opcode[-1])
    to, source = i.operands
    if isinstance(to, Vector):
        part = width // len(to.parts)
        puts, a = [write(one, part) for one in to.parts], read(source, width)

        def unpack(g: Group) -> None:
            value = a(g)
            for index, put in enumerate(puts):
                put(g, (value >> UNSIGNED[width](part * index)).astype(UNSIGNED[part]))

        return unpack
    put = write(to, width)
    if isinstance(source, Vector):
        part = width // len(source.parts)
        gets = [read(one, part) for one in source.parts]

        def pack(g: Group) -> None:
            value = UNSIGNED[width](0)
            for index, get in enumerate(gets):
                value = value | (get(g).astype(UNSIGNED[width]) << UNSIGNED[width](part * index))
            put(g, value)

        return pack
    a = read(source, width)
    return lambda g: put(g, a(g))


@instruction("cvta")
def convert_address(i: Instruction, program: Program) -> Code:
    """9.7.9.20: to a generic address; here addresses of parameters and global memory are generic already."""
    if not i.has("param", "global"):
        raise UnknownInstruction(i.text)
    put, a = write(i.operands[0], 64), read(i.operands[1], 64)
    return lambda g: put(g, a(g))


@instruction("selp")
def select(i: Instruction, program: Program) -> Code:
    """9.7.6.3: a where the predicate holds, else b."""
    width = bits_of(i.opcode[-1])
    put, a, b = write(i.operands[0], width), read(i.operands[1], width), read(i.operands[2], width)
    predicate = read(i.operands[3], 1)
    return lambda g: put(g, np.where(predicate(g), a(g), b(g)))


@instruction("setp")
def compare(i: Instruction, program: Program) -> Code:
    """9.7.6.1: a predicate from comparing two numbers; ordered comparisons with NaN are false."""
    kind = i.opcode[-1]
    if len(i.opcode) != 3 or kind in ("f16", "bf16") or (kind == "f32" and i.opcode[1] == "ne"):
        raise UnknownInstruction(i.text)
    width, function = bits_of(kind), _COMPARE[i.opcode[1]]
    put, a, b = write(i.operands[0], 1), read(i.operands[1], width), read(i.operands[2], width)
    return lambda g: put(g, function(typed(a(g), kind), typed(b(g), kind)))


@instruction("cvt")
def convert(i: Instruction, program: Program) -> Code:
    """9.7.9.21: integers are cut or extended by their own sign; floats are rounded to nearest even."""
    to, source = i.opcode[-2:]
    if to[0] in "us" and source[0] in "us":
        return _integers(i, to, source)
    if to == "f32" and source[0] in "us" and i.opcode == ("cvt", "rn", to, source):
        put, a = write(i.operands[0], 32), read(i.operands[1], bits_of(source))
        return lambda g: put(g, bits(typed(a(g), source).astype(np.float32)))
    if to == "bf16" and source in ("u16", "u32") and "rn" in i.opcode:
        return _bf16_of_whole(i, bits_of(source))
    if to in ("bf16x2", "f16x2"):
        return _pairs(i, to)
    if (to == "f32" or "rn" in i.opcode or (to, source) == ("tf32", "f32")) and (to, source) in _FLOATS:
        out, into, function = _FLOATS[to, source]
        if to == "tf32" and i.opcode != ("cvt", "rna", "tf32", "f32"):
            raise UnknownInstruction(i.text)
        put, a = write(i.operands[0], out), read(i.operands[1], into)
        return lambda g: put(g, function(a(g)))
    raise UnknownInstruction(i.text)


def _round_tf32(word: np.ndarray) -> np.ndarray:
    """To 10 bits of mantissa, to nearest, ties away from zero."""
    return (word + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


_FLOATS = {
    ("bf16", "f32"): (16, 32, lambda word: floating.bf16_bits(word.view(np.float32))),
    ("f16", "f32"): (16, 32, lambda word: floating.fp16_bits(word.view(np.float32))),
    ("f32", "bf16"): (32, 16, lambda half: bits(floating.bf16_value(half))),
    ("f32", "f16"): (32, 16, lambda half: bits(floating.fp16_value(half))),
    ("bf16", "f16"): (16, 16, lambda half: floating.bf16_bits(floating.fp16_value(half))),
    ("tf32", "f32"): (32, 32, _round_tf32),
}


def _integers(i: Instruction, to: str, source: str) -> Code:
    if len(i.opcode) != 3:
        raise UnknownInstruction(i.text)
    # There are no registers of 8 bits: the result is extended by its own sign.
    width = 16 if bits_of(to) == 8 else bits_of(to)
    put, a = write(i.operands[0], width), read(i.operands[1], bits_of(source))
    kinds = SIGNED if to[0] == "s" else UNSIGNED
    return lambda g: put(g, bits(typed(a(g), source).astype(kinds[bits_of(to)]).astype(kinds[width])))


def _bf16_of_whole(i: Instruction, width: int) -> Code:
    """By fp32, which holds the numbers below 2^24; larger ones would be rounded twice."""
    put, a = write(i.operands[0], 16), read(i.operands[1], width)

    def code(g: Group) -> None:
        number = a(g)
        if (number >= 2**24).any():
            raise UnknownInstruction(f"{i.text}, of 2^24 or more")
        put(g, floating.bf16_bits(number.astype(np.float32)))

    return code


def _pairs(i: Instruction, to: str) -> Code:
    """Two fp32 into one register: the first operand becomes the upper half."""
    if i.opcode != ("cvt", "rn", to, "f32"):
        raise UnknownInstruction(i.text)
    function = floating.bf16_bits if to == "bf16x2" else floating.fp16_bits
    put, a, b = write(i.operands[0], 32), read(i.operands[1], 32), read(i.operands[2], 32)

    def code(g: Group) -> None:
        high, low = (function(x(g).view(np.float32)).astype(np.uint32) for x in (a, b))
        put(g, (high << np.uint32(16)) | low)

    return code


@instruction("shfl")
def shuffle(i: Instruction, program: Program) -> Code:
    """9.7.9.6: .idx reads another lane's register, .bfly the one whose number differs in b's bits."""
    if not i.has("idx", "bfly") or i.operands[3].value != 31 or i.operands[4].value != -1:
        raise UnknownInstruction(i.text)
    put, a, b = write(i.operands[0], 32), read(i.operands[1], 32), read(i.operands[2], 32)
    crossed = i.has("bfly")

    def code(g: Group) -> None:
        lane = b(g).astype(np.int64) & 31
        lane = g.full(lane ^ LANES if crossed else lane)
        put(g, np.take_along_axis(g.full(a(g)), lane, axis=1))

    return code
