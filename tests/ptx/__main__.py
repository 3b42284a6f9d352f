"""Run the kernels as compiled for a GPU in the PTX interpreter, and hold them to fp64.

    python -m tests.ptx                       everything; takes an hour on two cores
    python -m tests.ptx --every 9             every ninth case, as .ci/run does
    python -m tests.ptx --quick               what pytest runs
    python -m tests.ptx --only "sm_90 bf16"   the cases whose line holds this

It prints a line for each case and exits 1 if any is wrong. Needs no GPU; unset TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.ptx.driver.cases import Case, all_cases, quick_cases
from tests.ptx.driver.check import Verdict
from tests.ptx.driver.compiled import triton_version
from tests.ptx.driver.persistent import persistent_cases
from tests.ptx.driver.segment_cases import SegmentCase, segment_cases
from tests.ptx.driver.segments import check_case


def line_of(case: Case | SegmentCase) -> str:
    """What a case is, in columns: target, variant, shape."""
    return f"sm_{case.target:<3} {case.variant:58} {case.shape:20}"


def row_of(case: Case | SegmentCase, verdict: Verdict) -> str:
    """A row of the table."""
    splits = ",".join(f"{name}:{count}" for name, count in verdict.splits.items())
    judged = "right" if not verdict.wrong else "WRONG: " + "; ".join(verdict.wrong)
    numbers = (
        f"{verdict.error:6.2f} {verdict.element:8.2f} {len(case.seeds):9} {splits:26} {verdict.seconds:5.0f}"
    )
    return f"{line_of(case)} {numbers}  {judged}"


HEADER = (
    f"{'GPU':6} {'variant':58} {'shape':20} {'error':>6} {'element':>8} {'schedules':>9} "
    f"{'programs a tile':26} {'s':>5}  verdict"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="what pytest runs")
    parser.add_argument("--only", default="", help='cases whose line holds this, such as "sm_90 bf16"')
    parser.add_argument("--every", type=int, default=1, help="of the chosen cases, every so many")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the kernels by interpreted ones; unset it")
    cases: list[Case | SegmentCase] = [*quick_cases()]
    if not options.quick:
        cases = [*dict.fromkeys([*all_cases(), *segment_cases(), *persistent_cases()])]
    chosen = [case for case in cases if options.only in " ".join(line_of(case).split())]
    if options.every < 1 or options.jobs < 1:
        parser.error("--every and --jobs must be at least 1")
    if not chosen:
        parser.error(f"--only {options.only!r}: no case's line holds this")
    chosen = chosen[:: options.every]
    print(f"Triton {triton_version()}; errors are over their budgets, 1 is the most allowed")
    print(HEADER, flush=True)
    wrong = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for case, verdict in zip(chosen, pool.map(check_case, chosen), strict=True):
            wrong += bool(verdict.wrong)
            print(row_of(case, verdict), flush=True)
    print(f"{len(chosen) - wrong} cases right, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
