"""Plant faults in the kernels and see which the PTX interpreter finds.

    python -m tests.ptx.mutants --jobs 2      all, two at a time; takes minutes
    python -m tests.ptx.mutants --only wait   those whose name holds this
    python -m tests.ptx.mutants --persistent  those of the persistent kernels for sm_90 instead

It prints a line for each, with the share of schedules that showed it, and exits 1 if the unchanged kernels
are not right, if a mutant's PTX is not another one, or if a mutant is found under no schedule, unless it is
known to change nothing. Needs no GPU; unset TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.ptx.driver.mutants import CASES, MUTANTS
from tests.ptx.driver.persistent_backward_mutants import PERSISTENT_BACKWARD_MUTANTS
from tests.ptx.driver.persistent_mutants import PERSISTENT_CASES, PERSISTENT_MUTANTS
from tests.ptx.driver.plant import SEEDS, run_mutant
from tests.ptx.driver.segment_mutants import SEGMENT_CASES, SEGMENT_MUTANTS
from tests.ptx.driver.segments import check_case


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="mutants whose name holds one of these")
    parser.add_argument("--schedules", type=int, default=len(SEEDS), help="how many each is tried under")
    parser.add_argument("--every", type=int, default=1, help="of the chosen mutants, every so many")
    parser.add_argument("--persistent", action="store_true", help="those of the persistent kernels instead")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the kernels by interpreted ones; unset it")
    cases = CASES | SEGMENT_CASES | PERSISTENT_CASES
    persistent = (*PERSISTENT_MUTANTS, *PERSISTENT_BACKWARD_MUTANTS)
    all_of_them = persistent if options.persistent else (*MUTANTS, *SEGMENT_MUTANTS)
    chosen = [mutant for mutant in all_of_them if any(one in mutant.name for one in options.only)]
    if not chosen:
        parser.error(f"--only {options.only!r}: no mutant's name holds this")
    if options.every < 1 or options.jobs < 1:
        parser.error("--every and --jobs must be at least 1")
    chosen = chosen[:: options.every]
    seeds, bad = SEEDS[: options.schedules], 0
    names = list(dict.fromkeys(mutant.case for mutant in chosen))
    with ProcessPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(check_case, [cases[name]._replace(seeds=seeds) for name in names])
        findings = pool.map(run_mutant, chosen, [seeds] * len(chosen))
        for name, verdict in zip(names, verdicts, strict=True):
            bad += bool(verdict.wrong)
            print(
                f"{'control: ' + name:55} {'; '.join(verdict.wrong) or 'right, with equal bits'}", flush=True
            )
        for mutant, finding in zip(chosen, findings, strict=True):
            first = next((one for one in finding.caught if one), "not found")
            same = "" if finding.differs else "THE SAME PTX; "
            bad += not finding.differs or any(finding.caught) == bool(mutant.redundant)
            why = mutant.redundant and f" ({mutant.redundant})"
            print(f"{mutant.name:55} found in {finding.share}: {same}{first[:170]}{why}", flush=True)
    print(f"{len(chosen)} mutants, {bad} lines that should not be so")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
