"""Branches and the end (9.7.12). A branch must take all lanes of a warp the same way, as Triton's do."""

from __future__ import annotations

import numpy as np

from tests.ptx.faults import Fault
from tests.ptx.machine import ENDED, Code, Group
from tests.ptx.parse import Instruction, Program
from tests.ptx.registers import read
from tests.ptx.table import instruction


@instruction("bra")
def branch(i: Instruction, program: Program) -> Code:
    """9.7.12.3: go on at the label, where the guard predicate holds."""
    target = program.labels[i.operands[0]]

    def code(g: Group) -> None:
        counter = g.machine.counter
        if g.mask is None:
            counter[g.rows] = target
            return
        taken = np.broadcast_to(g.mask, (len(g.rows), 32))
        some = taken.any(axis=1)
        if (some != taken.all(axis=1)).any():
            raise Fault(f"lanes of a warp part at a branch: {g}")
        counter[g.rows[some]] = target

    return code


@instruction("brx")
def branch_by_index(i: Instruction, program: Program) -> Code:
    """9.7.12.4: go on at the label of a table that the index names, the same one for all lanes of a warp."""
    index = read(i.operands[0], 32)
    targets = np.array([program.labels[one] for one in i.operands[1]])

    def code(g: Group) -> None:
        chosen = g.full(index(g))
        if g.mask is not None or (chosen != chosen[:, :1]).any():
            raise Fault(f"lanes of a warp part at a branch: {g}")
        if (chosen >= len(targets)).any():
            raise Fault(f"a branch beyond its table: {g}")
        g.machine.counter[g.rows] = targets[chosen[:, 0]]

    return code


@instruction("ret", "exit")
def leave(i: Instruction, program: Program) -> Code:
    """9.7.12.6, 9.7.12.7: the end of the thread."""

    def code(g: Group) -> None:
        g.machine.state[g.rows] = ENDED

    return code
