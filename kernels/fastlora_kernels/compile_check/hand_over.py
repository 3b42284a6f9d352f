"""Holds what programs hand over to each other to its order, on every path through a kernel's PTX.

Three things are handed over: p or q by flags, q of all rows to dA, and split-K's partial tiles by arrivals. A writer must
store, pass a barrier, and release; a reader must acquire, find as many arrivals as there are, pass a barrier, and
load. What holds before an instruction is what holds on every path to it. Counts are computed from the PTX for some
sizes, and compared with `tasks.py`.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from fastlora_kernels import tasks
from fastlora_kernels.compile_check.ptx import Instruction, Program, UnknownValue
from fastlora_kernels.tables import Tile


class Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        direction: "forward" or "backward".
        arguments: What its parameters in PTX are, in order, such as "p_ptr" or "scratch_ptrs.0".
        tile: Its block shapes.
        block_r: Ranks in a block.
    """

    direction: str
    arguments: tuple[str, ...]
    tile: Tile
    block_r: int


# A fact: something was "stored", "fenced" (stored, then a barrier), "acquired" or "ready" (acquired, then a barrier).
Fact = tuple[str, str]

_FLAGS: Final = "the flags"
_ALL_ROWS: Final = "the count of all rows"
# Which argument says how many programs share the tiles of a scratch.
_SPLITS: Final = {
    "forward": {"split_p": "scratch_ptrs.0", "split_y": "scratch_ptrs.1"},
    "backward": {
        "split_q": "scratch_ptrs.0",
        "split_dx": "scratch_ptrs.1",
        "split_gradients": "scratch_ptrs.2",
    },
}
_WORKSPACE: Final = 1 << 20
# Different counts of everything, so that none passes for another.
_SIZES: Final = tuple(
    {"M": M, "N": 4096, "K": 2048, "r": r, "workspace_ptr": _WORKSPACE}
    | {"split_p": 3, "split_y": 5, "split_q": 3, "split_dx": 5, "split_gradients": 7}
    for M, r in ((1500, 300), (2500, 150))
)


def hand_over_faults(ptx: str, kernel: Kernel) -> list[str]:
    """What is wrong with the hand-overs of a kernel, as phrases; empty if nothing is."""
    program = Program(ptx)
    # Two pointers of Triton's own come last.
    if len(program.parameters) != len(kernel.arguments) + 2:
        return [f"has {len(program.parameters)} parameters in PTX, not {len(kernel.arguments) + 2}"]
    return list(dict.fromkeys(_Check(program, kernel).faults()))


class _Check:
    def __init__(self, program: Program, kernel: Kernel) -> None:
        self.program, self.kernel = program, kernel
        self.handed = "p_ptr" if kernel.direction == "forward" else "q_ptr"
        self.splits = _SPLITS[kernel.direction]
        self.names = dict(zip(program.parameters, kernel.arguments, strict=False))
        self.given = [
            {parameter: sizes[name] for parameter, name in self.names.items() if name in sizes}
            for sizes in _SIZES
        ]
        self.broken: list[str] = []  # found on the way
        places = list(enumerate(program.instructions))
        self.releases = [n for n, one in places if one.has("release", "gpu", "global")]
        self.arrivals = [n for n, one in places if one.has("atom", "acq_rel", "gpu", "global")]
        self.waits = [n for n, one in places if one.has("acquire", "gpu", "global")]
        self.stores = self._accesses("st.global", 0)
        self.loads = self._accesses(("ld.global", "cp.async.ca", "cp.async.cg"), 1)
        self.events = {n: one for n, one in places if n in self.stores or _is_barrier(one)}
        self.gained: dict[tuple[int, int], Fact] = {}  # on the way from one instruction to another
        for number in self.waits:
            self._add_wait(number)
        self.scratch_of = {number: self._add_arrival(number) for number in self.arrivals}
        self.facts = self._solve()

    def _accesses(self, opcodes: str | tuple[str, ...], operand: int) -> dict[int, set[str]]:
        """The instructions of this kind that address what is handed over or a scratch, and which of them."""
        found = {}
        for number, one in enumerate(self.program.instructions):
            if one.opcode.startswith(opcodes):
                sources = self.program.sources(one.operands[operand])
                found[number] = {self.names.get(source, "") for source in sources}
        watched = {self.handed, "dA_ptr", *self.splits.values()}
        return {number: names & watched for number, names in found.items() if names & watched}

    def _add_wait(self, number: int) -> None:
        """The way on from an acquiring load on which enough tiles are stored."""
        what = self._counter(number, 1)
        compared = self._compared(number)
        if compared is None or compared[1] not in _AT_LEAST:
            self.broken.append(f"acquires {what} and does not compare it")
            return
        branch, relation, other = compared
        holds_if, extra = _AT_LEAST[relation]
        counts = self._values(other)
        if counts != [count - extra for count in self._published(what)]:
            self.broken.append(f"waits by {what} for {counts} tiles, where {self._published(what)} are published")
            return
        self.gained[branch, self._way(branch, holds_if)] = ("acquired", what)

    def _add_arrival(self, number: int) -> str:
        """The scratch of an arrival; notes the way on from it of the program that comes last."""
        compared = self._compared(number)
        if compared is not None and compared[1] in ("eq", "ne"):
            branch, relation, other = compared
            counts = self._values(other)
            for split, scratch in self.splits.items():
                if counts == [sizes[split] - 1 for sizes in _SIZES]:
                    self.gained[branch, self._way(branch, relation == "eq")] = ("acquired", scratch)
                    return scratch
        self.broken.append("counts an arrival and does not compare it with the number of splits less one")
        return ""

    def _compared(self, number: int) -> tuple[int, str, str] | None:
        """(the branch after an atomic or acquiring load, how its value is compared, with what)."""
        instructions = self.program.instructions
        # One thread reads; the others get it from it through shared memory.
        holding = {instructions[number].operands[0]}
        test: Instruction | None = None
        for place in range(number + 1, len(instructions)):
            one = instructions[place]
            if one.opcode.startswith("ld.shared"):
                holding.add(one.operands[0])
            elif one.has("setp") and holding & set(one.operands[1:]):
                test = one
            elif one.has("bra"):
                if test is None or one.guard.lstrip("!") != test.operands[0]:
                    return None
                relation, (left, right) = test.opcode.split(".")[1], test.operands[1:3]
                return (place, relation, right) if left in holding else (place, _FLIPPED[relation], left)
        return None

    def _way(self, branch: int, condition: bool) -> int:
        """Where a branch goes on if the condition that it is guarded by has this value."""
        fall_through, target = self.program.following[branch]
        return target if condition != self.program.instructions[branch].guard.startswith("!") else fall_through

    def _values(self, operand: str) -> list[int]:
        """What it holds for each of the sizes; empty if that is not known."""
        try:
            return [self.program.value(operand, given) for given in self.given]
        except UnknownValue:
            return []

    def _counter(self, number: int, operand: int) -> str:
        """Which counter an atomic or an acquiring load addresses: only that of all rows has a fixed place."""
        address = self.program.instructions[number].operands[operand]
        try:
            places = [self.program.address(address, given) - _WORKSPACE for given in self.given]
        except UnknownValue:
            return _FLAGS
        all_rows = tasks.BackwardCounters._fields.index("all_rows")
        is_that = self.kernel.direction == "backward" and set(places) == {4 * all_rows}
        return _ALL_ROWS if is_that else _FLAGS

    def _published(self, what: str) -> list[int]:
        """How many tiles are published by a counter, for each of the sizes."""
        tile, block_r = self.kernel.tile, self.kernel.block_r
        counts = []
        for sizes in _SIZES:
            M, N, K, r = (sizes[name] for name in "MNKr")
            blocks = (tile.block_m, tile.block_n, tile.block_k, block_r, tile.block_k_dA)
            tiles = tasks.backward_tiles(M, N, K, r, 1, 1, 1, *blocks)
            counts.append(tiles.q if what == _ALL_ROWS else tiles.ranks)
        return counts

    def _solve(self) -> list[frozenset[Fact] | None]:
        """What holds before each instruction on every path to it; None if it is never reached."""
        facts: list[frozenset[Fact] | None] = [None] * len(self.program.instructions)
        facts[0] = frozenset()
        todo = [0]
        while todo:
            number = todo.pop()
            after = self._after(number, facts[number] or frozenset())
            for other in self.program.following[number]:
                gained = self.gained.get((number, other))
                new = after | {gained} if gained else after
                before = facts[other]
                joined = new if before is None else before & new
                if joined != before:
                    facts[other] = joined
                    todo.append(other)
        return facts

    def _after(self, number: int, facts: frozenset[Fact]) -> frozenset[Fact]:
        if number not in self.events:
            return facts
        if number in self.stores:
            names = self.stores[number]
            return (facts - {("fenced", name) for name in names}) | {("stored", name) for name in names}
        fenced = {("fenced", name) for state, name in facts if state == "stored"}
        return facts | fenced | {("ready", name) for state, name in facts if state == "acquired"}

    def faults(self) -> Iterator[str]:
        """Phrases."""
        yield from self.broken
        yield from self._faults_of_publishing()
        for number, scratch in self.scratch_of.items():
            if scratch and ("fenced", scratch) not in (self.facts[number] or ()):
                yield "counts an arrival without a barrier after the stores of the split"
            if any(scratch in self.stores.get(n, ()) for n in self.program.reachable(number)):
                yield "stores a split after it counted its arrival"
        yield from self._faults_of_reading()

    def _faults_of_publishing(self) -> Iterator[str]:
        program = self.program
        counters = {_FLAGS} | ({_ALL_ROWS} if self.kernel.direction == "backward" else set())
        by = {number: self._counter(number, self._address_of(number)) for number in self.releases}
        for number in self.releases:
            if ("fenced", self.handed) not in (self.facts[number] or ()):
                yield "publishes a tile without a barrier after its stores"
            after = program.reachable(number)
            if any(self.handed in self.stores.get(n, ()) for n in after):
                yield "stores a tile after it was published"
            if any(by.get(n) == by[number] for n in after):
                yield f"counts a tile twice in {by[number]}"
            if self._values(program.instructions[number].operands[-1]) != [1] * len(_SIZES):
                yield f"does not count one tile in {by[number]}"
        stores = [number for number, names in self.stores.items() if self.handed in names]
        if not stores:
            yield f"never stores {self.handed}"
        for counter in sorted(counters):
            if any(self._ends_without(number, counter, by) for number in stores):
                yield f"does not publish a tile by {counter}"

    def _address_of(self, number: int) -> int:
        """Which operand of a releasing atomic is its address: "red" has no result before it."""
        return 0 if self.program.instructions[number].has("red") else 1

    def _ends_without(self, start: int, counter: str, by: dict[int, str]) -> bool:
        """Whether a program can end after this instruction without counting in the counter."""
        seen, todo = set(), [start]
        while todo:
            number = todo.pop()
            if number in seen or by.get(number) == counter:
                continue
            seen.add(number)
            if not self.program.following[number]:
                return True
            todo.extend(self.program.following[number])
        return False

    def _faults_of_reading(self) -> Iterator[str]:
        read = set()
        for number, names in self.loads.items():
            for name in names - {"dA_ptr"}:
                read.add(name)
                needed = self._needed(number) if name == self.handed else name
                if ("ready", needed) not in (self.facts[number] or ()):
                    yield f"reads {name} before it has waited for {needed}, and a barrier"
        if self.handed not in read:
            yield f"never reads {self.handed}"

    def _needed(self, number: int) -> str:
        """What a load of p or q must have waited for: of q, dA reads all rows."""
        after = self.program.reachable(number)
        makes_dA = any("dA_ptr" in self.stores.get(n, ()) for n in after)
        return _ALL_ROWS if makes_dA else _FLAGS


# How v is compared with a value c: (the outcome that means enough, by how much c is less than the least v).
_AT_LEAST: Final = {"ge": (True, 0), "lt": (False, 0), "gt": (True, 1), "le": (False, 1)}
_FLIPPED: Final = {"ge": "le", "le": "ge", "gt": "lt", "lt": "gt", "eq": "eq", "ne": "ne"}


def _is_barrier(one: Instruction) -> bool:
    """Whether all threads of a program meet here."""
    return one.opcode.startswith(("bar.sync", "barrier.sync", "barrier.cta.sync"))
