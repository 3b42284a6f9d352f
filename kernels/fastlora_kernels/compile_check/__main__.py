"""Compile every entry of the tile tables for its targets, and check it against the rules (`rules.py`).

    python -m fastlora_kernels.compile_check                         the most demanding variants
    python -m fastlora_kernels.compile_check sm_90 --every-variant   every variant of one architecture

It prints a line for each kernel and exits 1 if any has a fault. It needs no GPU and no torch, and runs with
any Triton that the kernels support; unset TRITON_INTERPRET.
"""

import argparse
import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import triton

from fastlora_kernels.compile_check.dora_sums import check_sums, sum_cases
from fastlora_kernels.compile_check.few_rows import check_few_rows, few_rows_cases
from fastlora_kernels.compile_check.groups import check_group, group_cases
from fastlora_kernels.compile_check.masked_updates import check_update, update_cases
from fastlora_kernels.compile_check.persistent import check_persistent, persistent_cases
from fastlora_kernels.compile_check.rules import check
from fastlora_kernels.compile_check.segments import check_segments, segment_cases
from fastlora_kernels.compile_check.unpacking import check_unpacking, unpacking_cases
from fastlora_kernels.compile_check.variants import TARGETS, cases, dora_cases

# The kernels of each kind to compile, and what compiles one.
_CHECKS = (
    (cases, check),
    (dora_cases, check),
    (sum_cases, check_sums),
    (group_cases, check_group),
    (update_cases, check_update),
    (unpacking_cases, check_unpacking),
    (few_rows_cases, check_few_rows),
    (segment_cases, check_segments),
    (persistent_cases, check_persistent),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the check and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fastlora_kernels.compile_check", description="Check the tile table."
    )
    parser.add_argument("architectures", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--every-variant", action="store_true", help="all dtypes, ranks and ways of loading")
    parser.add_argument("--only", default="", help='kernels whose line holds this, such as "half square"')
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at a time")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.architectures) - set(TARGETS))
    if unknown:
        parser.error(f"architectures must be among {', '.join(TARGETS)}; got {', '.join(unknown)}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the kernels by interpreted ones; unset it")
    found = []
    for make, run in _CHECKS:
        made = make(options.architectures or list(TARGETS), every_variant=options.every_variant)
        found.append((run, [case for case in made if options.only in str(case)]))
    total = sum(len(todo) for _, todo in found)
    if not total:
        parser.error(f"--only {options.only!r}: no kernel's line holds this")
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for line, faults in itertools.chain(*(pool.map(run, todo) for run, todo in found)):
            failed += bool(faults)
            print(" | ".join([line, *(f"FAULT: {fault}" for fault in faults)]), flush=True)
    print(f"Triton {triton.__version__}: {total - failed} kernels within the rules, {failed} with faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
