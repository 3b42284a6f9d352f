"""cp.async: copies from global to shared memory that a warp waits for by groups (9.7.9.25.3)."""

from __future__ import annotations

import numpy as np

from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import Code, Group
from tests.ptx.parse import Immediate, Instruction, Program
from tests.ptx.registers import address, read
from tests.ptx.table import instruction

KIND = 3  # of the ids of a warp


@instruction("cp")
def copy(i: Instruction, program: Program) -> Code:
    """9.7.9.25.3.1: `size` bytes, of which the source gives `used` and zero the rest.

    The bytes arrive at once, and who reads them without having waited has a race.
    """
    if i.opcode[1] != "async":
        raise UnknownInstruction(i.text)
    if i.has("commit_group"):
        return _commit
    if i.has("wait_group", "wait_all"):
        return _wait(i.operands[0].value if i.operands else 0)
    if not (i.has("shared") and i.has("global")) or not isinstance(i.operands[2], Immediate):
        raise UnknownInstruction(i.text)
    to, source, size = address(i.operands[0]), address(i.operands[1]), i.operands[2].value
    used = read(i.operands[3] if len(i.operands) > 3 else i.operands[2], 32)

    def code(g: Group) -> None:
        warps, lanes = g.active()
        if not warps.size:
            return
        access, _ = g.asynchronous(warps, KIND, is_async=False)
        count = g.full(used(g))[warps, lanes]
        if ((count != 0) & (count != size)).any():
            raise Fault(f"cp.async of part of its bytes: {g}")
        where = g.full(source(g))[warps, lanes]
        raw = np.zeros((len(warps), size), np.uint8)
        some = count > 0
        if some.any():
            part = access._replace(rows=access.rows[some], ids=access.ids[some], times=access.times[some])
            raw[some] = g.machine.memory.load(where[some], size, part, g.machine.clocks)
        into = g.full(to(g) + g.base)[warps, lanes]
        g.machine.shared.store(into, raw, access, g.machine.clocks)

    return code


def _commit(g: Group) -> None:
    """9.7.9.25.3.2: what was issued until now is a group."""
    clocks = g.machine.clocks
    for row in g.rows:
        g.machine.copies[row].append(int(clocks.time[clocks.id[row] + KIND * g.machine.num_warps]))


def _wait(most: int) -> Code:
    """9.7.9.25.3.3: until at most so many groups are under way."""

    def code(g: Group) -> None:
        finish(g, g.machine.copies, KIND, most)

    return code


def finish(g: Group, groups: list[list[int]], kind: int, most: int) -> np.ndarray:
    """The warps of a group learn that all but their last groups are done; up to which time, by warp."""
    clocks = g.machine.clocks
    times = np.zeros(len(g.rows), np.int64)
    for index, row in enumerate(g.rows):
        mine = groups[row]
        if len(mine) > most:
            times[index] = mine[len(mine) - most - 1]
            del mine[: len(mine) - most]
            clocks.known[row, clocks.id[row] + kind * g.machine.num_warps] = times[index]
    return times
