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

from fastlora_kernels.compile_check.rules import check
from fastlora_kernels.compile_check.segments import check_segments, segment_cases
from fastlora_kernels.compile_check.unpacking import check_unpacking, unpacking_cases
from fastlora_kernels.compile_check.variants import TARGETS, cases


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
    chosen = cases(options.architectures or list(TARGETS), every_variant=options.every_variant)
    todo = [case for case in chosen if options.only in str(case)]
    of = {"architectures": options.architectures or list(TARGETS), "every_variant": options.every_variant}
    unpacked = [case for case in unpacking_cases(**of) if options.only in str(case)]
    segments = [case for case in segment_cases(**of) if options.only in str(case)]
    if not todo and not unpacked and not segments:
        parser.error(f"--only {options.only!r}: no kernel's line holds this")
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        found_by = ((check, todo), (check_unpacking, unpacked), (check_segments, segments))
        for line, found in itertools.chain.from_iterable(pool.map(*one) for one in found_by):
            failed += bool(found)
            print(" | ".join([line, *(f"FAULT: {fault}" for fault in found)]), flush=True)
    total = len(todo) + len(unpacked) + len(segments)
    print(f"Triton {triton.__version__}: {total - failed} kernels within the rules, {failed} with faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
