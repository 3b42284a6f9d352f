"""Asynchronous matrix products of a warpgroup (9.7.16, "Asynchronous Warpgroup Level Matrix").

A product is computed when it is issued, and its registers get it when it is waited for; in between they
hold NaN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tests.ptx.copies import finish
from tests.ptx.faults import Fault, UnknownInstruction
from tests.ptx.machine import Code, Group, Machine
from tests.ptx.matrix import VALUE, fragment, stacked
from tests.ptx.memory import Access
from tests.ptx.parse import Instruction, Program, Vector
from tests.ptx.registers import read
from tests.ptx.table import instruction

KIND = 1  # of the ids of a warp
# "Matrix Descriptor Format": bytes of the swizzled rows, and which bits of a row's number cross.
_SWIZZLES = {1: (128, 7), 2: (64, 3), 3: (32, 1)}


@dataclass
class Accumulator:
    """The registers of one accumulator while products are under way.

    Attributes:
        values: [places, registers, 32].
        time: By place, of the last product; 0 if none is under way.
    """

    numbers: tuple[int, ...]
    values: np.ndarray
    time: np.ndarray


@instruction("wgmma")
def wgmma(i: Instruction, program: Program) -> Code:
    """9.7.16.7: fence, commit_group, wait_group and mma_async."""
    if i.has("fence"):
        return _fence
    if i.has("commit_group"):
        return _commit
    if i.has("wait_group"):
        most = i.operands[0].value
        return lambda g: _wait(g, most)
    return _product(i)


def _fence(g: Group) -> None:
    """9.7.16.7.1: registers that were touched before may go to products after it."""
    g.machine.fence_needed[g.rows] = False


def _commit(g: Group) -> None:
    """9.7.16.7.2: the products issued until now are a group."""
    clocks = g.machine.clocks
    for row in g.rows:
        g.machine.products[row].append(int(clocks.time[clocks.id[row] + KIND * g.machine.num_warps]))


def _wait(g: Group, most: int) -> None:
    """9.7.16.7.3: until at most so many groups are under way; registers then hold their results."""
    machine = g.machine
    times = finish(g, machine.products, KIND, most)
    machine.fence_needed[g.rows] = True
    for one in machine.accumulators.values():
        ready = (one.time[g.rows] > 0) & (one.time[g.rows] <= times)
        rows = g.rows[ready]
        if len(rows):
            for index, number in enumerate(one.numbers):
                machine.registers[number][rows] = one.values[rows, index]
            one.time[rows] = 0


def _product(i: Instruction) -> Code:
    """9.7.16.5.2: D = A B + D with D [64, N]; each warp has 16 rows of it (9.7.16.5.1.1)."""
    found = re.fullmatch(r"m64n(\d+)k(\d+)", i.opcode[4])
    kind = i.opcode[-1]
    if (
        not found
        or i.opcode[1:4] != ("mma_async", "sync", "aligned")
        or kind not in VALUE
        or i.opcode[5] != "f32"
    ):
        raise UnknownInstruction(i.text)
    N, K = map(int, found.groups())
    d, a, b = i.operands[:3]
    accumulates = read(i.operands[3], 1)
    from_registers = isinstance(a, Vector)
    signs, *transposes = [one.value for one in i.operands[5:]]
    if i.operands[4].value != 1 or signs != 1 or len(transposes) > (1 if from_registers else 2):
        raise UnknownInstruction(i.text)
    b_mn = bool(transposes and transposes[-1])
    a_mn = bool(transposes and transposes[0]) and not from_registers
    numbers = tuple(one.number for one in d.parts)
    left = [read(one, 32) for one in a.parts] if from_registers else read(a, 64)
    right = read(b, 64)

    def code(g: Group) -> None:
        _check(g)
        count = len(g.rows)
        access, times = g.asynchronous(np.arange(count), KIND, is_async=True)
        if from_registers:
            A = fragment(stacked(left, g), kind, True)
        else:
            quarter = 16 * (g.rows % g.machine.num_warps % 4)
            A = operand(g, g.full(left(g))[:, 0], 64, K, kind, a_mn, access, quarter)
        B = operand(g, g.full(right(g))[:, 0], N, K, kind, b_mn, access, None)
        product = (A @ B.swapaxes(1, 2)).reshape(count, 2, 8, N // 8, 4, 2)  # row halves, groups; columns
        product = product.transpose(0, 3, 1, 5, 2, 4).reshape(count, N // 2, 32)
        one = _accumulator(g.machine, numbers)
        old = _old_values(g, one)
        keep = g.full(accumulates(g))[:, None, :1]
        result = product + np.where(keep, old.view(np.float32), np.float32(0))
        one.values[g.rows] = result.view(np.uint32)
        one.time[g.rows] = times

    return code


def _check(g: Group) -> None:
    if g.machine.fence_needed[g.rows].any():
        raise Fault(f"wgmma without a wgmma.fence after its registers were touched: {g}")


def _accumulator(machine: Machine, numbers: tuple[int, ...]) -> Accumulator:
    if numbers not in machine.accumulators:
        places = len(machine.state)
        values = np.zeros((places, len(numbers), 32), np.uint32)
        machine.accumulators[numbers] = Accumulator(numbers, values, np.zeros(places, np.int64))
    return machine.accumulators[numbers]


def _old_values(g: Group, one: Accumulator) -> np.ndarray:
    """What the accumulator holds: of products under way, which run in order, or the registers'."""
    registers = g.machine.registers
    under_way = one.time[g.rows] > 0
    old = one.values[g.rows]
    if not under_way.all():
        held = np.stack([registers[number][g.chosen] for number in one.numbers], axis=1)
        old = np.where(under_way[:, None, None], old, held)
        for number in one.numbers:
            registers[number][g.chosen] = 0xFFFFFFFF
    return old


def operand(
    g: Group,
    descriptor: np.ndarray,
    rows: int,
    K: int,
    kind: str,
    mn_major: bool,
    access: Access,
    quarter: np.ndarray | None,
) -> np.ndarray:
    """[warps, rows, K] in fp32 from shared memory; only 16 rows from `quarter` on, where it is given."""
    size = 4 if kind == "tf32" else 2
    where = np.stack([chunks(int(one), rows, K, size, mn_major) for one in descriptor])  # [warps, ., .]
    if quarter is not None:
        per = 1 if not mn_major else 16 // size
        where = np.stack([one[q // per : (q + 16) // per] for one, q in zip(where, quarter, strict=True)])
    count = len(where)
    flat = (where + g.base[:, :, None]).reshape(-1)
    each = np.repeat(np.arange(count), flat.size // count)
    part = access._replace(rows=access.rows[each], ids=access.ids[each], times=access.times[each])
    raw = np.ascontiguousarray(g.machine.shared.load(flat, 16, part, g.machine.clocks))
    elements = raw.view(np.uint32 if size == 4 else np.uint16).reshape(*where.shape, 16 // size)
    if mn_major:  # [warps, chunks of rows, K, rows of a chunk]
        elements = elements.swapaxes(2, 3)
    return VALUE[kind](np.ascontiguousarray(elements)).reshape(count, -1, K)


def chunks(descriptor: int, rows: int, K: int, size: int, mn_major: bool) -> np.ndarray:
    """Addresses of the 16-byte chunks of an operand in shared memory (9.7.16.5.1).

    K-major: [rows, K size / 16]. Groups of 8 rows are a stride apart, each row has the swizzle's bytes.
    MN-major: [rows size / 16, K]. A row of memory holds the swizzle's bytes along M or N; 8 values of k
    follow each other, the next 8 are a stride apart, the next bytes along M or N a leading dimension.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 62 not in _SWIZZLES:
        raise UnknownInstruction("wgmma operand without a swizzle")
    width, crossed = _SWIZZLES[descriptor >> 62]
    if mn_major:
        chunk, k = np.arange(rows * size // 16)[:, None], np.arange(K)[None]
        per = width // 16
        at = start + chunk % per * 16 + chunk // per * leading + k % 8 * width + k // 8 * stride
    else:
        row, chunk = np.arange(rows)[:, None], np.arange(K * size // 16)[None]
        at = start + row // 8 * stride + row % 8 * width + chunk * 16
    return swizzled(at, crossed)


def swizzled(at: np.ndarray, crossed: int) -> np.ndarray:
    """5.5.7, "Swizzling Modes": the number of a 16-byte chunk is crossed with bits of its 128-byte row's."""
    return at ^ (((at >> 7) & crossed) << 4)
