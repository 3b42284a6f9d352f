"""Loads, stores and atomics (9.7.9.8, 9.7.9.12, 9.7.13.7, 9.7.13.8)."""

from __future__ import annotations

import numpy as np

from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import ASLEEP, Code, Group
from tests.ptx.memory import Access
from tests.ptx.parse import Immediate, Instruction, Parameter, Program, Register, Vector
from tests.ptx.registers import SIGNED, UNSIGNED, address, bits_of, read, write
from tests.ptx.table import instruction

_MODIFIERS = {
    "global",
    "shared",
    "shared::cta",
    "param",
    "gpu",
    "sys",
    "cta",
    "acquire",
    "release",
    "relaxed",
}
_MODIFIERS |= {"cg", "ca", "volatile", "v2", "v4", "L1::evict_last", "L1::evict_first", "L1::no_allocate"}


def _shape(i: Instruction, operand: object) -> tuple[int, list, int]:
    """(bits of an element, the operands, bytes of an access)."""
    if set(i.opcode[1:-1]) - _MODIFIERS:
        raise UnknownInstruction(i.text)
    parts = list(operand.parts) if isinstance(operand, Vector) else [operand]
    width = bits_of(i.opcode[-1])
    return width, parts, width // 8 * len(parts)


def _is_shared(i: Instruction) -> bool:
    if not i.has("shared", "shared::cta", "global"):
        raise UnknownInstruction(i.text)
    return not i.has("global")


def _with_sign(value: np.ndarray, width: int, wide: int) -> np.ndarray:
    """9.4.1: a signed value in a wider register."""
    return value.astype(UNSIGNED[width]).view(SIGNED[width]).astype(SIGNED[wide]).view(UNSIGNED[wide])


@instruction("ld")
def load(i: Instruction, program: Program) -> Code:
    """9.7.9.8: read memory; .acquire learns what was released to the value that it reads."""
    width, parts, size = _shape(i, i.operands[0])
    # A destination may be wider than what is loaded (9.4.1); only unsigned bytes occur.
    into = [max(one.bits, width) if isinstance(one, Register) else width for one in parts]
    widens = i.opcode[-1][0] == "s" and set(into) != {width}
    if widens and not i.has("param"):
        raise UnknownInstruction(i.text)
    puts = [write(one, wide) for one, wide in zip(parts, into, strict=True)]
    if i.has("param"):
        base = i.operands[1].base
        assert isinstance(base, Parameter)
        value = read(base, width)
        if widens:
            return lambda g: puts[0](g, _with_sign(np.asarray(value(g)), width, into[0]))
        return lambda g: puts[0](g, value(g))
    at, shared = address(i.operands[1]), _is_shared(i)
    strong, acquires = i.has("acquire", "relaxed", "volatile"), i.has("acquire")
    if strong and shared:
        raise UnknownInstruction(i.text)

    def code(g: Group) -> None:
        warps, lanes = g.active()
        if not warps.size:
            return
        where = g.full(at(g) + g.base if shared else at(g))[warps, lanes]
        memory = g.machine.shared if shared else g.machine.memory
        if strong:
            raw = _look(g, warps, where, size, acquires)
        else:
            raw = memory.load(where, size, g.access(warps), g.machine.clocks)
        values = np.ascontiguousarray(raw).view(UNSIGNED[width])
        for index, put in enumerate(puts):
            full = np.zeros((len(g.rows), 32), UNSIGNED[into[index]])
            full[warps, lanes] = values[:, index]
            put(g, full)

    return code


def _look(g: Group, warps: np.ndarray, where: np.ndarray, size: int, acquires: bool) -> np.ndarray:
    """The bytes there, by a strong load, which does not race with strong writes.

    A warp that looks again at what has not changed sleeps until something does. One lane of it looks, as in
    all that Triton makes of these kernels.
    """
    machine = g.machine
    memory = machine.memory
    index = memory.granules(where, size, "load", g.access(warps))
    if not memory.written[index].all():
        raise Fault(f"load of global memory that nobody wrote: {g}")
    for warp, one in zip(warps, where, strict=True):
        row = int(g.rows[warp])
        if acquires:
            machine.clocks.acquire(row, int(one))
        look = (g.number, int(one), machine.events)
        if machine.polls[row] == look:
            machine.state[row] = ASLEEP
            machine.waits_for[row] = ("global", machine.events)
        machine.polls[row] = look
    return memory.halves[index].view(np.uint8)


@instruction("st")
def store(i: Instruction, program: Program) -> Code:
    """9.7.9.12: write memory; .release publishes what its warp knows."""
    width, parts, size = _shape(i, i.operands[1])
    at, shared, releases = address(i.operands[0]), _is_shared(i), i.has("release")
    gets = [read(one, width) for one in parts]

    def code(g: Group) -> None:
        warps, lanes = g.active()
        if not warps.size:
            return
        where = g.full(at(g) + g.base if shared else at(g))[warps, lanes]
        values = np.stack([g.full(get(g))[warps, lanes] for get in gets], axis=1)
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(warps), size)
        memory = g.machine.shared if shared else g.machine.memory
        if i.has("release", "relaxed"):
            _write_strongly(g, warps, where, raw, releases)
        else:
            memory.store(where, raw, g.access(warps), g.machine.clocks)

    return code


def _write_strongly(g: Group, warps: np.ndarray, where: np.ndarray, raw: np.ndarray, releases: bool) -> None:
    """A store that others may look at meanwhile; no race with other strong accesses."""
    machine = g.machine
    index = machine.memory.granules(where, raw.shape[1], "store", g.access(warps))
    machine.memory.halves[index] = raw.view(np.uint16)
    machine.memory.written[index] = True
    machine.events += 1
    for warp, one in zip(warps, where, strict=True):
        if releases:
            machine.clocks.release(int(g.rows[warp]), int(one), starts=True)
        else:
            machine.clocks.released.pop(int(one), None)


@instruction("atom", "red")
def atomic(i: Instruction, program: Program) -> Code:
    """9.7.13.7, 9.7.13.8: add in one piece and give what was there; red gives nothing back.

    Only of scope gpu or sys: a narrower one orders nothing between CTAs.
    """
    returns = i.opcode[0] == "atom"
    if not i.has("add") or i.opcode[-1] not in ("u32", "s32") or not i.has("global"):
        raise UnknownInstruction(i.text)
    put = write(i.operands[0], 32) if returns else None
    at, amount = address(i.operands[-2]), read(i.operands[-1], 32)
    wide = i.has("gpu", "sys")
    acquires = wide and i.has("acquire", "acq_rel")
    releases = wide and i.has("release", "acq_rel")
    idle = i.operands[-1] == Immediate(0)

    def code(g: Group) -> None:
        machine = g.machine
        warps, lanes = g.active()
        where, amounts = g.full(at(g))[warps, lanes], g.full(amount(g))[warps, lanes]
        old = np.zeros((len(g.rows), 32), np.uint32)
        for warp, lane, one, more in zip(warps, lanes, where, amounts, strict=True):
            row = int(g.rows[warp])
            old[warp, lane] = _add(g, row, int(one), more)
            if acquires:
                machine.clocks.acquire(row, int(one))
            if releases:
                machine.clocks.release(row, int(one), starts=False)
        machine.events += bool(len(warps)) and not idle
        if put is not None:
            put(g, old)

    return code


def _add(g: Group, row: int, where: int, amount: np.uint32) -> np.uint32:
    """Add to a counter; the value before."""
    memory, at = g.machine.memory, np.array([where])
    nobody = np.zeros(1, np.int64)
    index = memory.granules(at, 4, "atomic", Access(nobody, nobody, nobody, False, g))
    if not memory.written[index].all():
        raise Fault(f"atomic of global memory that nobody wrote: {g}")
    word = memory.data[where : where + 4].view(np.uint32)
    before = word[0]
    word[0] = before + amount
    return before
