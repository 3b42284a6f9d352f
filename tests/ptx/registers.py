"""Registers, and the operands of an instruction as functions that read and write them.

All warps that run are one array: a register is [places, 32 lanes] of unsigned integers. An instruction is
carried out for a group of warps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tests.ptx.faults import UnknownInstruction
from tests.ptx.parse import Address, Immediate, Negated, Parameter, Program, Register, Special

if TYPE_CHECKING:
    from tests.ptx.machine import Group

Read: TypeAlias = "Callable[[Group], np.ndarray]"
Write: TypeAlias = "Callable[[Group, np.ndarray], None]"

LANES = np.arange(32)
UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
# What a register holds that nobody wrote: NaN in every width, and no address.
_NOTHING = {1: False, 8: 0xFF, 16: 0xFFFF, 32: 0xFFFFFFFF, 64: 0xFFFFFFFFFFFFFFFF}


def make_registers(program: Program, places: int) -> list[np.ndarray]:
    """[places, 32] for each register."""
    return [np.full((places, 32), _NOTHING[bits], UNSIGNED[bits]) for bits in program.registers]


def bits_of(kind: str) -> int:
    """The width of a type such as "s32"."""
    digits = kind.lstrip("abcdefghijklmnopqrstuvwxyz")
    return 1 if kind == "pred" else int(digits)


def read(operand: object, bits: int) -> Read:
    """A function that gives an operand's bits, [warps, 32] or something that broadcasts to it."""
    kind = UNSIGNED[bits]
    if isinstance(operand, Register):
        number = operand.number
        if operand.bits == bits:
            return lambda g: g.registers[number][g.chosen]
        if bits == 1 or operand.bits == 1:
            raise UnknownInstruction(f"{operand.name} read as {bits} bits")
        return lambda g: g.registers[number][g.chosen].astype(kind)
    if isinstance(operand, Negated):
        number = operand.register.number
        return lambda g: ~g.registers[number][g.chosen]
    if isinstance(operand, Immediate):
        value = np.full((1, 1), bool(operand.value) if bits == 1 else operand.value & ((1 << bits) - 1), kind)
        return lambda g: value
    if isinstance(operand, Parameter):
        name = operand.name
        return lambda g: np.full((1, 1), g.machine.arguments[name], kind)
    if isinstance(operand, Special):
        return _special(operand.name, kind)
    raise UnknownInstruction(f"operand {operand}")


def _special(name: str, kind: Any) -> Read:
    """10, "Special Registers"."""
    if name == "%tid.x":
        return lambda g: ((g.rows % g.machine.num_warps)[:, None] * 32 + LANES).astype(kind)
    if name == "%laneid":
        return lambda g: LANES[None].astype(kind)
    if name == "%ntid.x":
        return lambda g: np.full((1, 1), 32 * g.machine.num_warps, kind)
    if name == "%ctaid.x":
        return lambda g: g.machine.cta[g.rows][:, None].astype(kind)
    if name == "%nctaid.x":
        return lambda g: np.full((1, 1), g.machine.grid, kind)
    return lambda g: np.zeros((1, 1), kind)


def write(operand: object, bits: int) -> Write:
    """A function that sets a destination in the lanes that are active."""
    if operand is None:
        return lambda g, value: None
    if not isinstance(operand, Register) or operand.bits != bits:
        raise UnknownInstruction(f"destination {operand} of {bits} bits")
    number = operand.number

    def put(g: Group, value: np.ndarray) -> None:
        register = g.registers[number]
        if g.mask is None:
            register[g.chosen] = value
        else:
            register[g.chosen] = np.where(g.mask, value, register[g.chosen])

    return put


def address(operand: object) -> Read:
    """A function that gives an address, [warps, 32] int64 or broadcast to it."""
    assert isinstance(operand, Address)
    offset = operand.offset
    base = operand.base
    bits = base.bits if isinstance(base, Register) else 64
    value = read(base, bits)
    return lambda g: value(g).astype(np.int64) + offset


def typed(value: np.ndarray, kind: str) -> np.ndarray:
    """Bits taken as a type: a signed integer, fp32, fp64 or fp16; unsigned ones as they are."""
    if kind[0] == "s":
        return value.view(SIGNED[int(kind[1:])])
    if kind in ("f16", "f32", "f64"):
        return value.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])
    return value


def bits(value: np.ndarray) -> np.ndarray:
    """A typed value's bits."""
    return value.view(UNSIGNED[8 * value.dtype.itemsize])
