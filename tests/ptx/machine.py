"""The state of a launch: warps, their registers, memory and clocks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tests.ptx.clocks import BULK_STORES, Clocks
from tests.ptx.faults import Fault
from tests.ptx.memory import Access, Memory
from tests.ptx.parse import Program
from tests.ptx.registers import make_registers

Code: TypeAlias = "Callable[[Group], None]"

RUNS, AT_BARRIER, ASLEEP, ENDED = range(4)
# Tensor maps are arguments by value; their handle stands for the address of one.
FIRST_MAP = 1 << 30


class TensorMap(NamedTuple):
    """A matrix as TMA sees it (5.5, "Tensors").

    Attributes:
        base: Its address.
        rows: Rows.
        columns: Columns.
        pitch: Bytes from a row to the next.
        size: Bytes of an element.
        box: Rows and columns of the box that one instruction moves.
        swizzle: 0 for none; 1, 2 and 3 for 32, 64 and 128 bytes.
    """

    base: int
    rows: int
    columns: int
    pitch: int
    size: int
    box: tuple[int, int]
    swizzle: int


class Machine:
    """A launch that has not begun: `scheduler.run` runs it.

    Args:
        program: The kernel.
        num_warps: Warps of a CTA.
        shared_size: Bytes of shared memory of a CTA.
        grid: Number of CTAs.
        arguments: One for each parameter: numbers, addresses in `memory`, TensorMaps.
        memory: Global memory.
        resident: How many CTAs run at a time, at most.
    """

    def __init__(
        self,
        program: Program,
        num_warps: int,
        shared_size: int,
        grid: int,
        arguments: list[Any],
        memory: Memory,
        resident: int,
    ) -> None:
        self.program, self.num_warps, self.grid, self.memory = program, num_warps, grid, memory
        self.slots = min(grid, resident)
        places = self.slots * num_warps
        self.registers = make_registers(program, places)
        self.clocks = Clocks(places, num_warps, grid)
        self.pitch = (shared_size + 1023) // 1024 * 1024 + 1024
        self.shared = Memory(self.pitch * self.slots, "shared", readers=3 * num_warps)
        for slot in range(self.slots):
            self.shared.valid[slot * self.pitch // 2 : (slot * self.pitch + shared_size) // 2] = True
        self.counter = np.zeros(places, np.int64)
        self.state = np.full(places, ENDED)
        self.cta = np.full(places, -1)
        self.waits_for: list[object] = [None] * places  # a barrier's number, or what a spin looks at
        # By warp, the last time of each group that is not waited for: of cp.async, wgmma and bulk stores.
        self.copies: list[list[int]] = [[] for _ in range(places)]
        self.products: list[list[int]] = [[] for _ in range(places)]
        self.stores: list[list[int]] = [[] for _ in range(places)]
        self.accumulators: dict[tuple[int, ...], Any] = {}
        self.barriers: dict[tuple[int, int], Any] = {}
        self.fence_needed = np.ones(places, bool)  # wgmma.fence, before registers go to wgmma
        self.mbarriers: dict[int, Any] = {}
        self.loads: list[tuple[Any, int, int]] = []  # TMA loads under way: mbarrier, bytes, time
        self.events = 0  # of global memory that a spin may look at
        self.polls: list[object] = [None] * places
        self.steps = 0
        self.maps: dict[int, TensorMap] = {}
        self.arguments = self._arguments(arguments)

    def _arguments(self, values: list[Any]) -> dict[str, int]:
        """Each parameter's bits."""
        found = {}
        for (kind, name), value in zip(self.program.parameters, values, strict=True):
            if kind == "map":
                found[name] = FIRST_MAP + len(self.maps)
                self.maps[found[name]] = value
            elif kind == "f32":
                found[name] = int.from_bytes(struct.pack("<f", value), "little")
            else:
                found[name] = int(value) % (1 << int(kind[1:]))
        return found

    def begin(self, slot: int, cta: int) -> None:
        """A CTA starts in a slot."""
        rows = np.arange(slot * self.num_warps, (slot + 1) * self.num_warps)
        self.counter[rows], self.state[rows], self.cta[rows] = 0, RUNS, cta
        self.clocks.start(rows, cta)
        self.fence_needed[rows] = True
        self.shared.forget(slot * self.pitch, (slot + 1) * self.pitch)
        for row in rows:
            for kept in (self.copies, self.products, self.stores):
                kept[row] = []
            self.polls[row] = None

    def end(self, slot: int) -> None:
        """A CTA has ended."""
        for row in range(slot * self.num_warps, (slot + 1) * self.num_warps):
            if any(one.time[row] for one in self.accumulators.values()):
                raise Fault(f"a warp ended while its wgmma was under way: {self.place(row)}")
            who = self.clocks.id[row] + BULK_STORES * self.num_warps
            if self.clocks.known[row, who] < self.clocks.time[who]:
                raise Fault(f"a CTA ended while a TMA store read its shared memory: {self.place(row)}")
        low, high = slot * self.pitch, (slot + 1) * self.pitch
        own = [one for where, one in self.mbarriers.items() if low <= where < high]
        if any(one is mine for one, _, _ in self.loads for mine in own):
            raise Fault(f"a CTA ended while a TMA load was under way: {self.place(slot * self.num_warps)}")
        self.mbarriers = {at: one for at, one in self.mbarriers.items() if not low <= at < high}

    def place(self, row: int) -> str:
        """Where a warp stands."""
        # Who waits has gone past what it waits at.
        number = self.counter[row] - (self.state[row] in (AT_BARRIER, ASLEEP))
        number = min(number, len(self.program.instructions) - 1)
        instruction = self.program.instructions[number]
        return f"CTA {self.cta[row]} warp {row % self.num_warps} at {instruction.place}: {instruction.text}"


class Group:
    """Some warps that carry out one instruction together.

    Attributes:
        rows: Their places.
        chosen: The same as an index; a slice where they are neighbours.
        mask: [warps, 32], the lanes whose guard predicate holds; None if all do.
        number: The instruction's.
    """

    def __init__(self, machine: Machine, rows: np.ndarray, number: int) -> None:
        self.machine, self.rows, self.number = machine, rows, number
        self.registers = machine.registers
        first, last = int(rows[0]), int(rows[-1])
        self.chosen: Any = slice(first, last + 1) if last - first + 1 == len(rows) else rows
        self.mask: np.ndarray | None = None
        self.base = (rows // machine.num_warps * machine.pitch)[:, None]  # of their shared memory

    def __str__(self) -> str:
        instruction = self.machine.program.instructions[self.number]
        ctas = sorted({int(cta) for cta in self.machine.cta[self.rows]})
        some = ", ".join(map(str, ctas[:4])) + ", ..." * (len(ctas) > 4)
        return f"{instruction.place}: {instruction.text} (CTA {some})"

    def full(self, value: np.ndarray) -> np.ndarray:
        """[warps, 32] of what broadcasts to it."""
        shape = (len(self.rows), 32)
        return value if value.shape == shape else np.broadcast_to(value, shape)

    def active(self) -> tuple[np.ndarray, np.ndarray]:
        """(warp of the group, lane) of each active lane."""
        if self.mask is None:
            count = len(self.rows)
            return np.repeat(np.arange(count), 32), np.tile(np.arange(32), count)
        return np.nonzero(self.full(self.mask))

    def access(self, warps: np.ndarray) -> Access:
        """The own accesses of these warps of the group, one a lane."""
        rows = self.rows[warps]
        clocks = self.machine.clocks
        return Access(rows, clocks.id[rows], clocks.now(rows), False, self)

    def asynchronous(self, warps: np.ndarray, kind: int, *, is_async: bool) -> tuple[Access, np.ndarray]:
        """(accesses that these warps start, the new times); 1 is wgmma, 2 bulk stores, 3 cp.async."""
        clocks = self.machine.clocks
        ids = clocks.id[self.rows] + kind * self.machine.num_warps
        times = clocks.issue(ids)
        return Access(self.rows[warps], ids[warps], times[warps], is_async, self), times
