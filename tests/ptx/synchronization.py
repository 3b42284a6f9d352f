"""Barriers of a CTA, fences and election (9.7.13)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.ptx.clocks import SPACES
from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import AT_BARRIER, RUNS, Code, Group, Machine
from tests.ptx.parse import Immediate, Instruction, Program
from tests.ptx.registers import LANES, read, write
from tests.ptx.table import instruction


@dataclass
class Barrier:
    """A barrier that some warps of a CTA have reached.

    Attributes:
        expected: Warps that complete it.
        waiting: Places of those that wait.
        arrived: For each that went on, what it knew, as `Clocks.parts`.
    """

    expected: int
    waiting: list[int] = field(default_factory=list)
    arrived: list[tuple[np.ndarray, ...]] = field(default_factory=list)


@instruction("bar", "barrier")
def barrier(i: Instruction, program: Program) -> Code:
    """9.7.13.1: .sync waits for all warps of the CTA, or as many threads as it says; .arrive goes on.

    bar.warp.sync (9.7.13.2) orders the lanes of a warp, which are one here.
    """
    if i.has("warp"):
        return lambda g: None
    waits = i.has("sync")
    if not (waits or i.has("arrive")) or i.has("red"):
        raise UnknownInstruction(i.text)
    number = read(i.operands[0], 32)
    threads = read(i.operands[1], 32) if len(i.operands) > 1 else None
    is_plain = waits and threads is None and isinstance(i.operands[0], Immediate)

    def code(g: Group) -> None:
        which = int(g.full(number(g))[0, 0])
        if is_plain and _whole(g, which):
            return
        for index, row in enumerate(g.rows):
            count = g.machine.num_warps
            if threads is not None:
                count = int(g.full(threads(g))[index, 0]) // 32
            _reach(g.machine, int(row), int(g.full(number(g))[index, 0]), count, waits)

    return code


def _whole(g: Group, number: int) -> bool:
    """If the group is all warps of its CTAs and none is there already, all meet at once."""
    machine, rows = g.machine, g.rows
    num_warps = machine.num_warps
    slots = np.unique(rows // num_warps)
    if len(slots) * num_warps != len(rows) or any((slot, number) in machine.barriers for slot in slots):
        return False
    clocks = machine.clocks
    for part in clocks.parts:
        joined = part[g.chosen].reshape(len(slots), num_warps, -1).max(axis=1)
        part[g.chosen] = np.repeat(joined, num_warps, axis=0)
    clocks.tick(rows)
    return True


def _reach(machine: Machine, row: int, number: int, count: int, waits: bool) -> None:
    """One warp reaches a barrier; the last one completes it."""
    key = (row // machine.num_warps, number)
    one = machine.barriers.setdefault(key, Barrier(count))
    if one.expected != count:
        raise Fault(
            f"barrier {number} with {32 * count} and {32 * one.expected} threads: {machine.place(row)}"
        )
    clocks = machine.clocks
    if waits:
        one.waiting.append(row)
        machine.state[row] = AT_BARRIER
        machine.waits_for[row] = number
    else:
        one.arrived.append(tuple(part[row].copy() for part in clocks.parts))
        clocks.tick(row)
    if len(one.waiting) + len(one.arrived) < one.expected:
        return
    del machine.barriers[key]
    rows = np.array(one.waiting, np.int64)
    for index, part in enumerate(clocks.parts):
        everyone = [part[rows], *(known[index][None] for known in one.arrived)]
        part[rows] = np.concatenate(everyone).max(axis=0)
    clocks.tick(rows)
    machine.state[rows] = RUNS


@instruction("fence", "membar")
def fence(i: Instruction, program: Program) -> Code:
    """9.7.13.4: fence.proxy.async makes generic accesses before it visible to the async proxy.

    In the kind of memory that it names, or in all.

    Fences between threads (fence.acq_rel) are not known here: Triton orders by atomics.
    """
    if i.has("mbarrier_init"):
        return lambda g: None
    if not (i.has("proxy") and i.has("async")):
        raise UnknownInstruction(i.text)
    named = tuple(space for space in SPACES if i.has(space, f"{space}::cta", f"{space}::cluster"))
    return lambda g: g.machine.clocks.fence_proxy(g.rows, named or SPACES)


@instruction("elect")
def elect(i: Instruction, program: Program) -> Code:
    """9.7.13.15: one lane of the warp, here the lowest, has the predicate."""
    to, is_leader = i.operands[0].parts
    put_lane, put = write(to, 32), write(is_leader, 1)
    leader = (LANES == 0)[None]

    def code(g: Group) -> None:
        put_lane(g, np.zeros((1, 1), np.uint32))
        put(g, leader)

    return code


@instruction("setmaxnreg", "griddepcontrol", "nanosleep")
def hint(i: Instruction, program: Program) -> Code:
    """9.7.19.5, 9.7.13.16, 9.7.19.3: how many registers or how much time; no result."""
    return lambda g: None
