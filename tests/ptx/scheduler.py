"""Which warps run next: in step where there is no seed, in an order that the seed decides where there is one.

Warps that stand at the same instruction run it together, whatever CTA they belong to. That costs no
generality: between two synchronizations the order of warps does not show unless they race, and races are
found by clocks.
"""

from __future__ import annotations

import random
import re

import numpy as np

from tests.ptx.faults import Fault
from tests.ptx.machine import ASLEEP, AT_BARRIER, ENDED, RUNS, Code, Group, Machine
from tests.ptx.registers import read
from tests.ptx.table import build

_MOST_TURNS = 500_000  # the largest launch takes a tenth of it

# After these a warp may stand elsewhere, or not run any more.
_ENDS_A_BLOCK = re.compile(
    r"bra|brx|ret|exit|bar(?!\.warp)|barrier|ld\..*(acquire|relaxed|volatile)|mbarrier\.(try|test)_wait|atom|red"
)


def run(machine: Machine, seed: int | None = None) -> None:
    """Run all CTAs to their end.

    Raises:
        Fault: What the program did wrong, a deadlock included.
        UnknownInstruction: Naming it.
    """
    with np.errstate(all="ignore"):
        _Run(machine, seed).run()


class _Run:
    def __init__(self, machine: Machine, seed: int | None) -> None:
        self.machine = machine
        program = machine.program
        self.code: list[Code] = [build(one, program) for one in program.instructions]
        self.guards = [
            None if one.predicate is None else read(one.predicate, 1) for one in program.instructions
        ]
        self.ends = [bool(_ENDS_A_BLOCK.match(".".join(one.opcode))) for one in program.instructions]
        self.random = None if seed is None else random.Random(seed)
        self.own_speed = np.ones(machine.num_warps)
        # CTAs run at speeds that differ by up to 10^4, as if some were held up.
        if self.random is not None:
            self.speed = np.array([10 ** (4 * self.random.random()) for _ in range(machine.grid)])
            # Warps with tasks of their own do too, by up to 10^2.
            if any("setmaxnreg" in one.opcode for one in program.instructions):
                own = [10 ** (2 * self.random.random()) for _ in range(machine.num_warps)]
                self.own_speed = np.array(own)
        self.started = 0

    def run(self) -> None:
        machine = self.machine
        for slot in range(machine.slots):
            self._begin(slot)
        for _ in range(_MOST_TURNS):
            if machine.loads and self.random is not None and self.random.random() < 0.1:
                self._bring()
            self._wake()
            ready = np.flatnonzero(machine.state == RUNS)
            if len(ready):
                self._step(*self._choose(ready))
            elif machine.loads:
                self._bring()
            elif (machine.state == ENDED).all():
                return
            else:
                raise Fault(self._standing("deadlock"))
        raise Fault(self._standing("no end"))

    def _begin(self, slot: int) -> None:
        if self.started < self.machine.grid:
            self.machine.begin(slot, self.started)
            self.started += 1

    def _bring(self) -> None:
        """TMA loads arrive: all that are under way where there is no seed, else any one of them."""
        loads = self.machine.loads
        which = range(len(loads)) if self.random is None else [self.random.randrange(len(loads))]
        for one, count, time in [loads[index] for index in which]:
            one.bring(count, time)
        for index in sorted(which, reverse=True):
            del loads[index]

    def _wake(self) -> None:
        """Those that sleep go on if what they look at has changed."""
        machine = self.machine
        for row in np.flatnonzero(machine.state == ASLEEP):
            kind, *rest = machine.waits_for[row]
            if kind == "global":
                changed = machine.events != rest[0]
            else:
                one = machine.mbarriers.get(rest[0])
                changed = one is None or one.phase != rest[1]
            if changed:
                machine.state[row] = RUNS

    def _choose(self, ready: np.ndarray) -> tuple[np.ndarray, int]:
        """(warps that stand at one instruction, how many instructions they may run)."""
        machine = self.machine
        if self.random is None:
            # Those farthest behind, so that warps that parted meet again.
            counter = machine.counter[ready]
            return ready[counter == counter.min()], 1 << 30
        speed = self.speed[machine.cta[ready]] * self.own_speed[ready % machine.num_warps]
        chosen = self.random.choices(range(len(ready)), speed)[0]
        together = ready[machine.counter[ready] == machine.counter[ready[chosen]]]
        if self.random.random() < 0.5:
            keep = np.array([self.random.random() < 0.5 for _ in together]) | (together == ready[chosen])
            together = together[keep]
        return together, self.random.choice((1, 10, 100, 1 << 30))

    def _step(self, rows: np.ndarray, most: int) -> None:
        """Run instructions up to the next branch or synchronization."""
        machine = self.machine
        number = int(machine.counter[rows[0]])
        group = Group(machine, rows, number)
        for _ in range(most):
            group.number = number
            machine.counter[rows] = number + 1 if self.ends[number] else number
            guard = self.guards[number]
            group.mask = None if guard is None else guard(group)
            if guard is None or group.mask.any():
                if group.mask is not None and group.mask.all():
                    group.mask = None
                self.code[number](group)
            machine.steps += len(rows)
            if self.ends[number]:
                break
            number += 1
        else:
            machine.counter[rows] = number
        if (machine.state[rows] == ENDED).any():
            self._end(rows)

    def _end(self, rows: np.ndarray) -> None:
        machine = self.machine
        for slot in np.unique(rows // machine.num_warps):
            own = slice(slot * machine.num_warps, (slot + 1) * machine.num_warps)
            if (machine.state[own] == ENDED).all():
                machine.end(int(slot))
                self._begin(int(slot))

    def _standing(self, what: str) -> str:
        """Where every warp stands that has not ended; spins are those that look at what no one changes."""
        machine = self.machine
        lines = []
        for row in np.flatnonzero(machine.state != ENDED):
            how = {AT_BARRIER: "waits at a barrier", ASLEEP: "spins"}.get(machine.state[row], "runs")
            lines.append(f"{how}: {machine.place(row)}")
        return f"{what}: " + "; ".join(lines)
