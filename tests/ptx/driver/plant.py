"""Plants a fault in the kernels, by a change of their source or of their PTX, and runs them."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from triton.runtime.jit import JITFunction

import fastlora_kernels
from tests.ptx.driver.cases import Case
from tests.ptx.driver.mutants import CASES, Mutant
from tests.ptx.driver.persistent_mutants import PERSISTENT_CASES
from tests.ptx.driver.segment_mutants import SEGMENT_CASES
from tests.ptx.driver.segments import check_case
from tests.ptx.parse import parse

SEEDS: Final = (None, 0, 1, 2, 3)


@dataclass
class Finding:
    """What came of a mutant.

    Attributes:
        differs: Whether its PTX is another one than the kernels'.
        caught: For each schedule, what was wrong, or "".
    """

    differs: bool = False
    caught: list[str] = field(default_factory=list)

    @property
    def share(self) -> str:
        """In how many schedules it was caught."""
        return f"{sum(map(bool, self.caught))} of {len(self.caught)}"


_PLAIN: dict[str, dict[str, list[tuple]]] = {}  # by case, the PTX of the kernels as they are


def run_mutant(mutant: Mutant, seeds: tuple[int | None, ...] = SEEDS) -> Finding:
    """Run a mutant's case under each schedule; results must agree with fp64 and with the first schedule's."""
    case = (CASES | PERSISTENT_CASES | SEGMENT_CASES)[mutant.case]
    plain, changed, finding = {}, {}, Finding()
    small = case._replace(M=1) if isinstance(case, Case) else case
    check_case(small._replace(seeds=(None,)), _keeping(plain))
    before = _PLAIN.setdefault(mutant.case, {name: _meaning(ptx) for name, ptx in plain.items()})
    assert all(before[name] == _meaning(ptx) for name, ptx in plain.items()), (
        "an earlier mutant is still there"
    )
    with planted(mutant):
        for seed in seeds[1:] if mutant.needs_two else seeds:
            chosen = case._replace(seeds=(None, seed) if mutant.needs_two else (seed,))
            verdict = check_case(chosen, _keeping(changed, mutant))
            finding.caught.append("; ".join(verdict.wrong))
    finding.differs = any(_meaning(changed[name]) != _meaning(plain[name]) for name in changed)
    return finding


def _keeping(texts: dict[str, str], mutant: Mutant | None = None) -> Callable[[str, str], str]:
    """A change of PTX that notes what runs."""

    def change(ptx: str, name: str) -> str:
        texts[name] = changed_ptx(mutant, ptx) if mutant else ptx
        return texts[name]

    return change


def changed_ptx(mutant: Mutant, ptx: str) -> str:
    """The PTX with those of the mutant's changes that are made in it."""
    for place, old, new in mutant.changes:
        if place == "ptx":
            ptx = re.sub(old, new, ptx)
        elif place.startswith("barriers"):
            ptx = _without_barriers(ptx, old, before=place.endswith("before"))
    return ptx


def _without_barriers(ptx: str, text: str, *, before: bool) -> str:
    """The barriers gone that lie between an instruction and the next access to global memory on one side."""
    lines = ptx.splitlines()
    for number, line in enumerate(lines):
        if text in line:
            other = range(number - 1, 0, -1) if before else range(number + 1, len(lines))
            for at in other:
                if re.search(r"(st|ld|red|atom)\.global|mma|cp\.async", lines[at]) and text not in lines[at]:
                    break
                if "bar.sync" in lines[at]:
                    lines[at] = ""
    return "\n".join(lines)


def _meaning(ptx: str) -> list[tuple]:
    """The instructions without their places in the source."""
    return [(one.opcode, one.operands, one.predicate) for one in parse(ptx).instructions]


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Inside, the kernels have the fault."""
    kept = {}
    try:
        for place, function, old, new in source_changes(mutant):
            kept.setdefault(place, (function, function.src))
            assert old in function.src, f"{place} has no {old!r}"
            function._unsafe_update_src(function.src.replace(old, new))
        _forget_hashes()
        yield
    finally:
        for function, source in kept.values():
            function._unsafe_update_src(source)
        _forget_hashes()


def source_changes(mutant: Mutant) -> Iterator[tuple[str, JITFunction, str, str]]:
    """Those of its changes that are made in the kernels' source: where, in which function, what by what."""
    for place, old, new in mutant.changes:
        if place != "ptx" and not place.startswith("barriers"):
            module, _, name = place.rpartition(".")
            yield place, getattr(importlib.import_module(f"fastlora_kernels.{module}"), name), old, new


def _forget_hashes() -> None:
    """Every kernel's hash contains those of what it calls."""
    for found in pkgutil.walk_packages(fastlora_kernels.__path__, "fastlora_kernels."):
        if not found.ispkg and "compile_check" not in found.name:
            for value in vars(importlib.import_module(found.name)).values():
                if isinstance(value, JITFunction):
                    value.hash = None
