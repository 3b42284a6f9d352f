"""Rules for a compiled kernel: shared memory, no spills, matrix instructions, and a correct hand-over."""

import re

from fastlora_kernels.compile_check.compiler import Resources, compile_kernel
from fastlora_kernels.compile_check.variants import Case
from fastlora_kernels.tables import load_table


def faults(case: Case, made: Resources) -> list[str]:
    """The rules that a compiled kernel breaks, as phrases; empty if it may be shipped."""
    found = []
    limit = load_table(case.architecture).shared_memory
    if made.shared > limit:
        found.append(f"takes {made.shared} bytes of shared memory, the target has {limit}")
    if made.spill:
        found.append(f"spills {made.spill} bytes")
    if case.target.backend == "cuda":
        found += _hand_over_faults(made.assembly, case.direction)
        if case.variant.tma and not re.search(r"bulk\.tensor\S*\.shared::c\w+\.global", made.assembly):
            found.append("loads nothing through TMA")
        if case.variant.stores_through_tma and not re.search(
            r"bulk\.tensor\S*\.global\.shared::c\w+", made.assembly
        ):
            found.append("stores nothing through TMA")
    # A wgmma instruction takes 64 rows.
    wants_wgmma = case.architecture == "sm_90" and case.kind != "ieee" and case.tile.block_m >= 64
    if wants_wgmma and "wgmma.mma_async" not in made.assembly:
        found.append("has no wgmma")
    return found


def _hand_over_faults(ptx: str, direction: str) -> list[str]:
    """Faults in a hand-over, which must be: stores, barrier, release; acquire, barrier, loads past L1."""
    # A tile is published by an atomic with release semantics: "atom" from Triton 3.6, "red", which returns
    # nothing, from 3.9. A split arrives by one atomic with acquire and release.
    release, acquire, both, load = "release.add", "gpu.acquire", "acq_rel.add", "ld.global.cg"
    events = re.findall(r"st\.global|bar\.sync|release\.add|gpu\.acquire|acq_rel\.add|ld\.global\.cg", ptx)
    found = [f"has no {event}" for event in (release, acquire, both) if event not in events]
    for index, event in enumerate(events):
        if event in (release, both) and events[index - 1] != "bar.sync":
            found.append(f"hands over by {event} without a barrier after its stores")
        # Not checked backward: dB tiles too read p past L1, but without acquire, as an earlier launch wrote
        # p.
        if event == load and direction == "forward" and not {acquire, both} & set(events[:index]):
            found.append("reads what was handed over before it acquires it")
        if event in (acquire, both) and "bar.sync" not in events[index + 1 : _next(events, load, index)]:
            found.append(f"reads what it acquired by {event} without a barrier in between")
    return found


def _next(events: list[str], event: str, index: int) -> int:
    """The index of the next `event` after `index`; the length if there is none."""
    return events.index(event, index) if event in events[index:] else len(events)


def check(case: Case) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    try:
        made = compile_kernel(case.direction, case.architecture, case.tile, case.variant, case.target)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    found = faults(case, made)
    line = f"{case}: {made.registers} registers, {made.shared} bytes shared, {made.spill} spilled"
    return line, found
