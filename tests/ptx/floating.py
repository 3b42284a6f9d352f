"""fp32 arithmetic, exact to the last bit, and the 16-bit formats (9.7.3)."""

from __future__ import annotations

import numpy as np

from tests.ptx.faults import UnknownInstruction
from tests.ptx.integer import integer_arithmetic
from tests.ptx.machine import Code, Group
from tests.ptx.parse import Instruction, Program
from tests.ptx.registers import bits, read, write
from tests.ptx.table import instruction


@instruction("add", "sub", "mul", "div", "rem", "min", "max")
def arithmetic(i: Instruction, program: Program) -> Code:
    """9.7.3.3 to 9.7.3.5, 9.7.3.11, 9.7.3.12 for fp32, rounded to nearest even; other kinds elsewhere."""
    name, kind = i.opcode[0], i.opcode[-1]
    if kind[0] in "us":
        return integer_arithmetic(i)
    if kind in ("bf16", "bf16x2", "f16", "f16x2"):
        return _in_16_bits(i)
    if kind != "f32" or set(i.opcode[1:-1]) - {"rn"}:
        raise UnknownInstruction(i.text)
    put, a, b = write(i.operands[0], 32), read(i.operands[1], 32), read(i.operands[2], 32)
    function = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "min": np.fmin,
        "max": np.fmax,
    }[name]
    return lambda g: put(g, bits(function(a(g).view(np.float32), b(g).view(np.float32))))


@instruction("sqrt")
def square_root(i: Instruction, program: Program) -> Code:
    """9.7.3.14: rounded to nearest even."""
    if i.opcode != ("sqrt", "rn", "f32"):
        raise UnknownInstruction(i.text)
    put, a = write(i.operands[0], 32), read(i.operands[1], 32)
    return lambda g: put(g, bits(np.sqrt(a(g).view(np.float32))))


def _in_16_bits(i: Instruction) -> Code:
    """9.7.4.1 to 9.7.4.3: by fp32, whose second rounding moves no bit, as it has twice the digits and two."""
    name, kind = i.opcode[0], i.opcode[-1]
    if name not in ("add", "sub", "mul") or set(i.opcode[1:-1]) - {"rn"}:
        raise UnknownInstruction(i.text)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    width = 32 if kind.endswith("x2") else 16
    to_bits, value = (bf16_bits, bf16_value) if kind.startswith("bf16") else (fp16_bits, fp16_value)
    put, a, b = write(i.operands[0], width), read(i.operands[1], width), read(i.operands[2], width)

    def code(g: Group) -> None:
        halves = (np.ascontiguousarray(x(g)).view(np.uint16) for x in (a, b))
        done = to_bits(function(*map(value, halves)))
        put(g, np.ascontiguousarray(done).view(np.uint32 if width == 32 else np.uint16))

    return code


@instruction("fma")
def fused(i: Instruction, program: Program) -> Code:
    """9.7.3.6: a b + c with one rounding, to nearest even."""
    if i.opcode != ("fma", "rn", "f32"):
        raise UnknownInstruction(i.text)
    put = write(i.operands[0], 32)
    a, b, c = (read(operand, 32) for operand in i.operands[1:])

    def code(g: Group) -> None:
        put(g, bits(fma(*(x(g).view(np.float32) for x in (a, b, c)))))

    return code


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in fp32 with one rounding.

    The product is exact in fp64. The sum is rounded to odd there, so that rounding it again cannot differ
    from rounding once (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    low = total - product
    error = (product - (total - low)) + (c - low)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    wrong = even & (error != 0) & np.isfinite(total)
    if wrong.any():
        total = np.where(wrong, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return total.astype(np.float32)


def bf16_bits(value: np.ndarray) -> np.ndarray:
    """fp32 to bf16, to nearest even; NaN becomes 0x7FFF (9.7.9.21)."""
    word = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = ((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded)


def bf16_value(half: np.ndarray) -> np.ndarray:
    """bf16 to fp32, exactly."""
    return (half.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp16_bits(value: np.ndarray) -> np.ndarray:
    """fp32 to fp16, to nearest even; NaN becomes 0x7FFF."""
    return np.where(np.isnan(value), np.uint16(0x7FFF), value.astype(np.float16).view(np.uint16))


def fp16_value(half: np.ndarray) -> np.ndarray:
    """fp16 to fp32, exactly."""
    return half.view(np.float16).astype(np.float32)


def tf32_value(word: np.ndarray) -> np.ndarray:
    """fp32 bits as a matrix instruction takes them for tf32: the low 13 bits are ignored (9.7.15.5.1)."""
    return (word & np.uint32(0xFFFFE000)).view(np.float32)
