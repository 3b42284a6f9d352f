"""Take the barriers out of the kernels one at a time, and see which the PTX interpreter misses.

    python -m tests.ptx.barriers            of sm_90; takes minutes
    python -m tests.ptx.barriers sm_80

It prints a line for each barrier: its place in the source, what was found, and the accesses to memory from the barrier
before it to the one after it. A barrier that is found is needed; docs/proof.md says why each of the others is not.
Needs no GPU; unset TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import sys

from tests.ptx.driver.check import check
from tests.ptx.driver.mutants import CASES

_ACCESS = re.compile(
    r"\b((?:ld|st|atom|red)\.(?:global|shared)|ldmatrix|stmatrix|cp\.async(?:\.bulk)?(?:\.(?:commit|wait)_group)?"
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


def _accesses(lines) -> list[str]:
    found: list[str] = []
    for line in lines:
        if "bar.sync" in line or line.startswith("$L__BB"):
            found.append("barrier" if "bar.sync" in line else "label")
            break
        for access in _ACCESS.findall(line):
            if access not in found[-1:]:
                found.append(access)
    return found


def main() -> None:
    """Print what becomes of each barrier."""
    case = CASES[sys.argv[1] if len(sys.argv) > 1 else "sm_90"]
    for one in ("forward", "backward"):
        texts: list[str] = []
        chosen = case._replace(passes=(one,), seeds=(None,))
        check(chosen, lambda ptx, name, texts=texts: texts.append(ptx) or ptx)
        barriers, found = barriers_of(texts[0]), 0
        for number in barriers:

            def without(ptx: str, name: str, number: int = number) -> str:
                lines = ptx.splitlines()
                lines[number] = ""
                return "\n".join(lines)

            wrong = check(chosen, without).wrong
            found += bool(wrong)
            told = wrong[0][:60] if wrong else "not found"
            print(f"{one:8} line {number:5} {told:62} {surroundings(texts[0], number)}", flush=True)
        print(f"{one}: {found} of {len(barriers)} barriers found")


if __name__ == "__main__":
    main()
