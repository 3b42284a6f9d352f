"""mbarriers: phases that complete by arrivals and by bytes (9.7.13.15)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx.clocks import MBARRIERS
from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import ASLEEP, Code, Group, Machine
from tests.ptx.parse import Address, Instruction, Program
from tests.ptx.registers import address, read, write
from tests.ptx.table import instruction


@dataclass
class MBarrier:
    """One mbarrier object (9.7.13.15.2).

    Attributes:
        count: Arrivals of a phase.
        pending: Arrivals that are missing in this one.
        bytes: Bytes that are expected and have not come; below 0 if they came before they were expected.
        phase: How many phases are complete.
        known: What those who arrived, and the loads, have published.
        done: The same at the end of the last phase.
        id: The id of the loads that complete on it.
        users: By id, when a warp last used it; first the one that made it, with the time of that.
    """

    count: int
    pending: int
    known: np.ndarray
    done: np.ndarray | None
    id: int
    bytes: int = 0
    phase: int = 0
    users: dict[int, int] = field(default_factory=dict)

    def bring(self, count: int, time: int) -> None:
        """The bytes of a load are there (9.7.13.15.8, complete_tx)."""
        self.bytes -= count
        self.known[self.id] = max(time, self.known[self.id])
        self.settle()

    def settle(self) -> None:
        """Complete the phase if nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count
            self.done = self.known.copy()


def at(machine: Machine, row: int, where: int, place: object) -> MBarrier:
    """The mbarrier at an address, for a warp that knows of it."""
    one = machine.mbarriers.get(where)
    if one is None:
        raise Fault(f"there is no mbarrier: {place}")
    clocks = machine.clocks
    maker, made = next(iter(one.users.items()))
    if clocks.known[row, maker] < made:
        raise Fault(f"race: an mbarrier is used before its initialization is known: {place}")
    who = int(clocks.id[row])
    if who != maker:
        one.users[who] = int(clocks.known[row, who])
    return one


@instruction("mbarrier")
def mbarrier(i: Instruction, program: Program) -> Code:
    """9.7.13.15: each in the function of its name."""
    which = {
        "init": _init,
        "inval": _invalidate,
        "arrive": _arrive,
        "try_wait": _try_wait,
        "test_wait": _try_wait,
    }
    if i.opcode[1] not in which or i.has("shared::cluster", "noComplete"):
        raise UnknownInstruction(i.text)
    where = address(next(one for one in i.operands if isinstance(one, Address)))
    return which[i.opcode[1]](i, where)


def _each(g: Group, where: Any) -> list[tuple[int, int, int, int]]:
    """(warp of the group, lane, place, address) of each active lane."""
    warps, lanes = g.active()
    addresses = g.full(where(g) + g.base)
    return [(w, lane, int(g.rows[w]), int(addresses[w, lane])) for w, lane in zip(warps, lanes, strict=True)]


def _init(i: Instruction, where: Any) -> Code:
    """9.7.13.15.9: a new object that waits for `count` arrivals in each phase."""
    count = read(i.operands[1], 32)

    def code(g: Group) -> None:
        machine = g.machine
        clocks = machine.clocks
        for warp, lane, row, one in _each(g, where):
            first = int(clocks.cta_ids(np.array([row]))[0]) + 4 * machine.num_warps
            taken = {other.id for other in machine.mbarriers.values()}
            free = next((x for x in range(first, first + MBARRIERS) if x not in taken), None)
            assert free is not None, "a CTA has more mbarriers than the interpreter has room for"
            number = int(g.full(count(g))[warp, lane])
            known = clocks.known[row].copy()
            users = {int(clocks.id[row]): int(clocks.now(np.array([row]))[0])}
            machine.mbarriers[one] = MBarrier(number, number, known, None, free, users=users)

    return code


def _invalidate(i: Instruction, where: Any) -> Code:
    """9.7.13.15.10: the object is gone; nobody may use it any more."""

    def code(g: Group) -> None:
        for _, _, row, one in _each(g, where):
            gone = g.machine.mbarriers.pop(one, None)
            if gone is None:
                raise Fault(f"there is no mbarrier: {g}")
            under_way = any(one is gone for one, _, _ in g.machine.loads)
            if under_way or any(g.machine.clocks.known[row, who] < time for who, time in gone.users.items()):
                raise Fault(f"race: an mbarrier is invalidated while it is in use: {g}")

    return code


def _arrive(i: Instruction, where: Any) -> Code:
    """9.7.13.15.13: one arrival, which publishes; .expect_tx adds bytes to wait for before it."""
    expects = i.has("expect_tx")
    amount = read(i.operands[2], 32) if expects else None
    if i.operands[0] is not None or (not expects and len(i.operands) > 2):
        raise UnknownInstruction(i.text)

    def code(g: Group) -> None:
        clocks = g.machine.clocks
        for warp, lane, row, address_ in _each(g, where):
            one = at(g.machine, row, address_, g)
            if amount is not None:
                one.bytes += int(g.full(amount(g))[warp, lane])
            if one.pending == 0:
                raise Fault(f"more arrivals at an mbarrier than it waits for: {g}")
            one.pending -= 1
            np.maximum(one.known, clocks.known[row], out=one.known)
            clocks.tick(row)
            one.settle()
            g.machine.polls[row] = None  # who has done something since does not look again in a spin

    return code


def _try_wait(i: Instruction, where: Any) -> Code:
    """9.7.13.15.16: whether the phase of this parity is complete; if so, learn what it published."""
    if not i.has("parity"):
        raise UnknownInstruction(i.text)
    put, parity = write(i.operands[0], 1), read(i.operands[2], 32)

    def code(g: Group) -> None:
        machine = g.machine
        addresses, parities = g.full(where(g) + g.base), g.full(parity(g))
        complete = np.zeros((len(g.rows), 1), bool)
        for warp, row in enumerate(g.rows):
            one = at(machine, int(row), int(addresses[warp, 0]), g)
            complete[warp] = (one.phase & 1) != int(parities[warp, 0])
            if not complete[warp]:
                machine.state[row] = ASLEEP
                machine.waits_for[row] = ("mbarrier", int(addresses[warp, 0]), one.phase)
            elif one.done is not None:
                known = machine.clocks.known[row]
                np.maximum(known, one.done, out=known)
        put(g, complete)

    return code
