"""TMA: boxes of a matrix between global and shared memory (9.7.9.27.1, "Tensor Copies")."""

from __future__ import annotations

import numpy as np

from tests.ptx.clocks import BULK_STORES
from tests.ptx.copies import finish
from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import Code, Group, TensorMap
from tests.ptx.mbarriers import at
from tests.ptx.memory import Access
from tests.ptx.parse import Address, Instruction, Program
from tests.ptx.registers import address, read
from tests.ptx.table import instruction
from tests.ptx.wgmma import swizzled

_CROSSED = (0, 1, 3, 7)


@instruction("cp.bulk")
def bulk(i: Instruction, program: Program) -> Code:
    """9.7.9.27.1.2: a box at the given coordinates, the innermost first.

    What lies outside the matrix is read as zero and not written. A load completes on an mbarrier, by the
    bytes of the whole box, at a time that the scheduler chooses; a store is waited for by groups.
    """
    if i.has("commit_group"):
        return _commit
    if i.has("wait_group"):
        return _wait(i.operands[0].value)
    if not (i.has("tensor") and i.has("2d")) or i.has("multicast::cluster", "im2col"):
        raise UnknownInstruction(i.text)
    tensor = next(one for one in i.operands if isinstance(one, Address) and one.coordinates)
    others = [address(one) for one in i.operands if one is not tensor]
    handle = address(Address(tensor.base, tensor.offset))
    coordinates = [read(one, 32) for one in tensor.coordinates]
    is_load = i.opcode[5].startswith("shared")

    def code(g: Group) -> None:
        warps, lanes = g.active()
        for warp, lane in zip(warps, lanes, strict=True):
            of = lambda get: int(g.full(get(g))[warp, lane])  # noqa: E731, B023
            column, row = (of(one) - (of(one) >> 31 << 32) for one in coordinates)
            tile = _Box(g, g.machine.maps[of(handle)], row, column, of(others[0]), int(g.base[warp, 0]))
            if is_load:
                _load(g, int(g.rows[warp]), tile, of(others[1]) + int(g.base[warp, 0]))
            else:
                _store(g, int(warp), tile)

    return code


class _Box:
    """The elements of one box: where each lies in shared and in global memory, and which exist."""

    def __init__(self, g: Group, map_: TensorMap, row: int, column: int, start: int, base: int) -> None:
        rows, columns = map_.box
        self.size = map_.size
        width = columns * map_.size
        if start % (128 * (_CROSSED[map_.swizzle] + 1)):
            raise Fault(f"a TMA box is not aligned to its swizzle: {g}")
        if map_.swizzle and width > 16 << map_.swizzle:
            raise Fault(f"a TMA box has wider rows than its swizzle: {g}")
        r, c = np.arange(rows)[:, None], np.arange(columns)[None]
        self.shared = (swizzled(start + r * width + c * map_.size, _CROSSED[map_.swizzle]) + base).ravel()
        self.inside = (
            (row + r >= 0) & (row + r < map_.rows) & (column + c >= 0) & (column + c < map_.columns)
        ).ravel()
        self.globally = (map_.base + (row + r) * map_.pitch + (column + c) * map_.size).ravel()


def _load(g: Group, row: int, box: _Box, where: int) -> None:
    machine = g.machine
    clocks = machine.clocks
    one = at(machine, row, where, g)
    clocks.time[one.id] += 1
    time = clocks.time[one.id]
    raw = np.zeros((len(box.inside), box.size), np.uint8)
    read_by = _lanes(row, one.id, time, int(box.inside.sum()), True, g)
    if box.inside.any():
        raw[box.inside] = machine.memory.load(box.globally[box.inside], box.size, read_by, clocks)
    machine.shared.store(box.shared, raw, _lanes(row, one.id, time, len(box.inside), True, g), clocks)
    machine.loads.append((one, raw.size, time))


def _store(g: Group, warp: int, box: _Box) -> None:
    machine = g.machine
    row = int(g.rows[warp])
    who = int(machine.clocks.id[row]) + BULK_STORES * machine.num_warps
    machine.clocks.time[who] += 1
    time = machine.clocks.time[who]
    if not box.inside.any():
        return
    count = int(box.inside.sum())
    source = _lanes(row, who, time, count, True, g)
    raw = machine.shared.load(box.shared[box.inside], box.size, source, machine.clocks)
    machine.memory.store(box.globally[box.inside], raw, source._replace(is_async=False), machine.clocks)


def _lanes(row: int, who: int, time: int, count: int, is_async: bool, g: Group) -> Access:
    return Access(np.full(count, row), np.full(count, who), np.full(count, time), is_async, g)


def _commit(g: Group) -> None:
    """9.7.9.27.2.1: the stores issued until now are a group."""
    clocks = g.machine.clocks
    for row in g.rows:
        g.machine.stores[row].append(int(clocks.time[clocks.id[row] + BULK_STORES * g.machine.num_warps]))


def _wait(most: int) -> Code:
    """9.7.9.27.2.2: until at most so many groups are under way; .read, until they have read their source.

    A CTA's end waits for its stores, so the results are there for the next launch.
    """

    def code(g: Group) -> None:
        finish(g, g.machine.stores, BULK_STORES, most)

    return code
