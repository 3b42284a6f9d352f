"""Take the barriers out of the kernels, and see which the PTX interpreter misses.

    python -m tests.ptx.barriers            of sm_90; takes minutes
    python -m tests.ptx.barriers sm_80

Each barrier is taken out alone, and then for good, on top of all that went before it without being found.
So what stays is a set of which each is found. Of those that went, one that is found where others are gone too
is needed unless they are there. It prints a line for each: its place in the source, what was found in either
way, and the accesses to memory from the barrier before it to the one after it. Needs no GPU; unset
TRITON_INTERPRET.
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
    """Its place in the source, and the accesses on either side, to the next barrier or label."""
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


def main() -> None:
    """Print what becomes of each barrier."""
    case = CASES[sys.argv[1] if len(sys.argv) > 1 else "sm_90"]
    for one in ("forward", "backward"):
        texts: list[str] = []
        chosen = case._replace(passes=(one,), seeds=(None,))
        check(chosen, lambda ptx, name, texts=texts: texts.append(ptx) or ptx)
        barriers, alone, gone = barriers_of(texts[0]), 0, set()
        for number in barriers:
            wrong = [found_without(chosen, numbers) for numbers in ({number}, gone | {number})]
            alone += bool(wrong[0])
            gone |= set() if wrong[1] else {number}
            told = " | ".join(f"{one_of[:45] or 'not found':45}" for one_of in wrong)
            print(f"{one:8} {number:5} {told} {surroundings(texts[0], number)}", flush=True)
        stay = len(barriers) - len(gone)
        print(f"{one}: {alone} of {len(barriers)} barriers are found alone; {stay} stay", flush=True)


if __name__ == "__main__":
    main()
