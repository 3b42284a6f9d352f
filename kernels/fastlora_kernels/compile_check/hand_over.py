"""Holds what programs hand over to each other to its order, on every path through a kernel's PTX.

Three things are handed over: p or q by flags, q of all rows to dA, and split-K's partial tiles by arrivals.
A writer must store, pass a barrier, and release. A reader must acquire, find as many arrivals as there are,
pass a barrier, and load. What holds before an instruction is what holds on every path to it. Counts are
computed from the PTX for some sizes, and compared with `tasks.py`.
"""

from collections.abc import Iterator
from typing import Final

from fastlora_kernels.compile_check.hand_over_events import ALL_ROWS, FLAGS, SIZES, Events, Kernel
from fastlora_kernels.compile_check.ptx import Program

# Something was "stored", "fenced" (stored, then a barrier), "acquired" or "ready" (acquired, then a barrier).
Fact = tuple[str, str]

# How v is compared with a value c: (the outcome that means enough, by how much c is less than the least v).
_AT_LEAST: Final = {"ge": (True, 0), "lt": (False, 0), "gt": (True, 1), "le": (False, 1)}


def hand_over_faults(ptx: str, kernel: Kernel) -> list[str]:
    """What is wrong with the hand-overs of a kernel, as phrases; empty if nothing is."""
    program = Program(ptx)
    # Two pointers of Triton's own come last.
    expected = len(kernel.arguments) + 2
    if len(program.parameters) != expected:
        return [f"has {len(program.parameters)} parameters in PTX, not {expected}"]
    return list(dict.fromkeys(_Check(Events(program, kernel)).faults()))


class _Check:
    def __init__(self, events: Events) -> None:
        self.events, self.program = events, events.program
        self.broken: list[str] = []  # found on the way
        self.gained: dict[tuple[int, int], Fact] = {}  # on the way from one instruction to another
        for number in events.waits:
            self._add_wait(number)
        self.scratch_of = {number: self._add_arrival(number) for number in events.arrivals}
        self.facts = self._solve()

    def _add_wait(self, number: int) -> None:
        """The way on from an acquiring load on which enough tiles are stored."""
        events, counter = self.events, self.events.counter(number)
        compared = events.compared(number)
        if compared is None or compared.relation not in _AT_LEAST:
            self.broken.append(f"acquires {counter} and does not compare it")
            return
        holds_if, extra = _AT_LEAST[compared.relation]
        counts, published = events.values(compared.other), events.published(counter)
        if counts != [count - extra for count in published]:
            self.broken.append(f"waits by {counter} for {counts} tiles, where {published} are published")
            return
        self.gained[compared.branch, events.way(compared.branch, holds_if)] = ("acquired", counter)

    def _add_arrival(self, number: int) -> str:
        """The scratch of an arrival; notes the way on from it of the program that comes last."""
        events, compared = self.events, self.events.compared(number)
        if compared is not None and compared.relation in ("eq", "ne"):
            counts = events.values(compared.other)
            for split, scratch in events.splits.items():
                if counts == [sizes[split] - 1 for sizes in SIZES]:
                    is_last = events.way(compared.branch, compared.relation == "eq")
                    self.gained[compared.branch, is_last] = ("acquired", scratch)
                    return scratch
        self.broken.append("counts an arrival and does not compare it with the number of splits less one")
        return ""

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
        if names := self.events.stores.get(number):
            return (facts - {("fenced", name) for name in names}) | {("stored", name) for name in names}
        if number not in self.events.barriers:
            return facts
        fenced = {("fenced", name) for state, name in facts if state == "stored"}
        return facts | fenced | {("ready", name) for state, name in facts if state == "acquired"}

    def faults(self) -> Iterator[str]:
        """Phrases."""
        yield from self.broken
        yield from self._faults_of_publishing()
        for number, scratch in self.scratch_of.items():
            if scratch and ("fenced", scratch) not in (self.facts[number] or ()):
                yield "counts an arrival without a barrier after the stores of the split"
            if any(scratch in self.events.stores.get(n, ()) for n in self.program.reachable(number)):
                yield "stores a split after it counted its arrival"
        yield from self._faults_of_reading()

    def _faults_of_publishing(self) -> Iterator[str]:
        program = self.program
        counters = [FLAGS, ALL_ROWS] if self.events.backward else [FLAGS]
        by = {number: self.events.counter(number) for number in self.events.releases}
        for number in self.events.releases:
            if ("fenced", self.events.handed) not in (self.facts[number] or ()):
                yield "publishes a tile without a barrier after its stores"
            after = program.reachable(number)
            if any(self.events.handed in self.events.stores.get(n, ()) for n in after):
                yield "stores a tile after it was published"
            if any(by.get(n) == by[number] for n in after):
                yield f"counts a tile twice in {by[number]}"
            if self.events.values(program.instructions[number].operands[-1]) != [1] * len(SIZES):
                yield f"does not count one tile in {by[number]}"
        stores = [number for number, names in self.events.stores.items() if self.events.handed in names]
        if not stores:
            yield f"never stores {self.events.handed}"
        for counter in counters:
            if any(self._ends_without(number, counter, by) for number in stores):
                yield f"does not publish a tile by {counter}"

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
        for number, names in self.events.loads.items():
            for name in names - {"dA_ptr"}:
                read.add(name)
                needed = self._needed(number) if name == self.events.handed else name
                if ("ready", needed) not in (self.facts[number] or ()):
                    yield f"reads {name} before it has waited for {needed}, and a barrier"
        if self.events.handed not in read:
            yield f"never reads {self.events.handed}"

    def _needed(self, number: int) -> str:
        """What a load of p or q must have waited for: of q, dA reads all rows."""
        after = self.program.reachable(number)
        makes_dA = any("dA_ptr" in self.events.stores.get(n, ()) for n in after)
        return ALL_ROWS if makes_dA else FLAGS
