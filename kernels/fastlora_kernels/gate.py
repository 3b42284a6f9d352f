"""What every entry of the tile table is held to, checked by compiling it for its targets.

    python -m fastlora_kernels.gate                         the most demanding variants, all architectures
    python -m fastlora_kernels.gate sm_90 --every-variant   every variant of one architecture

It prints a line for each kernel and exits 1 if any has a fault. It needs no GPU and no torch, and runs with
any Triton that the kernels support; unset TRITON_INTERPRET.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from fastlora_kernels.configs import SHARED_MEMORY, TABLE, Tile, takes_tma
from fastlora_kernels.offline import TARGETS, Resources, Variant, compile_kernel


class Case(NamedTuple):
    """One kernel to compile."""

    architecture: str
    kind: str
    rows: str
    direction: str
    tile: Tile
    variant: Variant
    target: GPUTarget

    def __str__(self) -> str:
        variant = self.variant
        return (
            f"{self.target.arch} {self.kind} {self.rows} rows, {self.direction}, {variant.element} with "
            f"{variant.adapter} adapters, r={variant.r}, {'TMA' if variant.tma else 'pointers'}"
            f"{', dropout' if variant.dropout else ''}"
        )


def cases(architectures: list[str], *, every_variant: bool) -> Iterator[Case]:
    """The kernels to compile: per entry and target the two most demanding variants, or all of them."""
    for (architecture, kind, rows), entry in TABLE.items():
        if architecture not in architectures:
            continue
        tma = takes_tma(architecture, kind)
        variants = demanding_variants(kind, tma)
        if every_variant:
            variants = all_variants(kind, tma)
        for target in TARGETS[architecture]:
            for direction, tile in entry._asdict().items():
                for variant in variants:
                    yield Case(architecture, kind, rows, direction, tile, variant, target)


def demanding_variants(kind: str, tma: bool) -> list[Variant]:
    """Those that take most shared memory (p and q are fp32 in the pipeline) and most registers."""
    if kind == "half":
        return [Variant("bf16", adapter, 64, tma, dropout=True) for adapter in ("bf16", "fp32")]
    return [Variant("fp32", "fp32", 64, tma, kind, dropout=True)]


def all_variants(kind: str, tma: bool) -> list[Variant]:
    """Every dtype, adapter dtype, rank block and way of loading; dropout in one of the 16-bit dtypes."""
    loads = [True, False] if tma else [False]
    if kind != "half":
        return [
            Variant("fp32", "fp32", r, load, kind, dropout)
            for r in (8, 24)
            for load in loads
            for dropout in (False, True)
        ]
    whole = [
        Variant(element, adapter, r, load)
        for element in ("bf16", "fp16")
        for adapter in (element, "fp32")
        for r in (8, 24, 64)
        for load in loads
    ]
    return whole + [variant._replace(dropout=True) for variant in whole if variant.element == "bf16"]


def faults(case: Case, made: Resources) -> list[str]:
    """What is wrong with a compiled kernel, as phrases; none if it may be shipped."""
    found = []
    limit = SHARED_MEMORY[case.architecture]
    if made.shared > limit:
        found.append(f"takes {made.shared} bytes of shared memory, the target has {limit}")
    if made.spill:
        found.append(f"spills {made.spill} bytes")
    if case.target.backend == "cuda":
        found += _hand_over_faults(made.assembly, case.direction)
        if case.variant.tma and "cp.async.bulk.tensor" not in made.assembly:
            found.append("loads nothing through TMA")
    wants_wgmma = case.architecture == "sm_90" and case.kind != "ieee"
    if wants_wgmma and "wgmma.mma_async" not in made.assembly:
        found.append("has no wgmma")
    return found


def _hand_over_faults(ptx: str, direction: str) -> list[str]:
    """The order that hands p and q over: stores, barrier, release; acquire, barrier, loads past L1."""
    # Triton 3.6 publishes with atom, 3.9 with red, which returns nothing.
    release, acquire, load = "release.add", "gpu.acquire", "ld.global.cg"
    events = re.findall(r"st\.global|bar\.sync|release\.add|gpu\.acquire|ld\.global\.cg", ptx)
    found = [f"has no {event}" for event in (release, acquire) if event not in events]
    for index, event in enumerate(events):
        if event == release and events[index - 1] != "bar.sync":
            found.append("publishes without a barrier after its stores")
        # The backward's dB tiles read p past L1 as well, which an earlier launch wrote.
        if event == load and direction == "forward" and acquire not in events[:index]:
            found.append("reads p before it acquires its flag")
        if event == acquire and "bar.sync" not in events[index + 1 : _next(events, load, index)]:
            found.append("reads what it acquired without a barrier in between")
    return found


def _next(events: list[str], event: str, index: int) -> int:
    """Where `event` next stands after `index`, or the end."""
    return events.index(event, index) if event in events[index:] else len(events)


def _check(case: Case) -> tuple[str, list[str]]:
    try:
        made = compile_kernel(case.direction, case.architecture, case.tile, case.variant, case.target)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    found = faults(case, made)
    line = f"{case}: {made.registers} registers, {made.shared} bytes shared, {made.spill} spilled"
    return line, found


def main(arguments: list[str] | None = None) -> int:
    """Run the gate; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fastlora_kernels.gate", description="Check the tile table."
    )
    parser.add_argument("architectures", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--every-variant", action="store_true", help="all dtypes, ranks and ways of loading")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at a time")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.architectures) - set(TARGETS))
    if unknown:
        parser.error(f"architectures must be among {', '.join(TARGETS)}; got {', '.join(unknown)}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the kernels by interpreted ones; unset it")
    todo = list(cases(options.architectures or list(TARGETS), every_variant=options.every_variant))
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for line, found in pool.map(_check, todo):
            failed += bool(found)
            print(" | ".join([line, *(f"FAULT: {fault}" for fault in found)]), flush=True)
    print(f"Triton {triton.__version__}: {len(todo) - failed} kernels within the gate, {failed} with faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
