"""Take the barriers out of the kernels, and see which the PTX interpreter misses.

    python -m tests.ptx.barriers            of sm_90; takes minutes
    python -m tests.ptx.barriers sm_80

It prints a line for each barrier that is taken out alone: its place in the source, what was found, and the
accesses to memory from the barrier before it to the one after it. A barrier that is found is needed. Those
between two that are found are then taken out together, and each left in alone: if that is found, and with this
one left in it is not, any other of them does the work of this one. Needs no GPU; unset TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from tests.ptx.driver.cases import Case
from tests.ptx.driver.check import check
from tests.ptx.driver.mutants import CASES

_ACCESS = re.compile(
    r"\b((?:ld|st|atom|red)\.(?:global|shared)|ldmatrix|stmatrix"
    r"|cp\.async(?:\.bulk)?(?:\.(?:commit|wait)_group)?"
    r"|wgmma\.(?:fence|mma_async|commit_group|wait_group)|mbarrier\.\w+|fence\.proxy)"
)


def barriers_of(ptx: str) -> list[int]:
    """The numbers of the lines that are barriers of a CTA."""
    return [number for number, line in enumerate(ptx.splitlines()) if "bar.sync" in line]


def surroundings(ptx: str, number: int) -> str:
    """Where the barrier is in the source, and the accesses on either side of it, to the next barrier or label."""
    lines = ptx.splitlines()
    place = next(
        (found[1] for line in lines[number::-1] if (found := re.search(r"// (\w+\.py:\d+)", line))), "?"
    )
    before = _accesses(reversed(lines[:number]))[::-1]
    return f"{place}: {' '.join(before)} | {' '.join(_accesses(lines[number + 1 :]))}"


def _accesses(lines: Iterable[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if "bar.sync" in line or line.startswith("$L__BB"):
            found.append("barrier" if "bar.sync" in line else "label")
            break
        for access in _ACCESS.findall(line):
            if access not in found[-1:]:
                found.append(access)
    return found


def found_without(case: Case, numbers: Iterable[int]) -> str:
    """What is wrong with the lines of these numbers gone; "" if nothing is."""
    gone = set(numbers)

    def without(ptx: str, name: str) -> str:
        return "\n".join("" if number in gone else line for number, line in enumerate(ptx.splitlines()))

    return next(iter(check(case, without).wrong), "")


def runs_between(barriers: list[int], needed: set[int]) -> list[list[int]]:
    """The barriers that follow each other without a needed one between them."""
    runs: list[list[int]] = [[]]
    for number in barriers:
        if number in needed:
            runs.append([])
        else:
            runs[-1].append(number)
    return [run for run in runs if len(run) > 1]


def main() -> None:
    """Print what becomes of each barrier."""
    case = CASES[sys.argv[1] if len(sys.argv) > 1 else "sm_90"]
    for one in ("forward", "backward"):
        texts: list[str] = []
        chosen = case._replace(passes=(one,), seeds=(None,))
        check(chosen, lambda ptx, name, texts=texts: texts.append(ptx) or ptx)
        barriers, needed = barriers_of(texts[0]), set()
        for number in barriers:
            wrong = found_without(chosen, [number])
            needed |= {number} if wrong else set()
            print(
                f"{one:8} {number:5} {wrong[:60] or 'not found':60} {surroundings(texts[0], number)}",
                flush=True,
            )
        print(f"{one}: {len(needed)} of {len(barriers)} barriers are found alone")
        for run in runs_between(barriers, needed):
            print(f"{one}: without {run}: {found_without(chosen, run)[:60] or 'not found'}", flush=True)
            for kept in run:
                wrong = found_without(chosen, set(run) - {kept})
                print(f"{one}:     but with {kept}: {wrong[:60] or 'not found'}", flush=True)


if __name__ == "__main__":
    main()
