"""What every entry of the tile tables is held to, checked by compiling it for its targets.

    python -m fastlora_kernels.gate                         the most demanding variants, all architectures
    python -m fastlora_kernels.gate sm_90 --every-variant   every variant of one architecture

It prints a line for each kernel and exits 1 if any has a fault. It needs no GPU and no torch, and runs with
any Triton that the kernels support; unset TRITON_INTERPRET.
"""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from fastlora_kernels.configs import takes_tma
from fastlora_kernels.offline import TARGETS, Resources, Variant, compile_kernel
from fastlora_kernels.tables import Tile, load_table


class Case(NamedTuple):
    """One kernel to compile."""

    architecture: str
    kind: str
    shape_class: str
    direction: str
    tile: Tile
    variant: Variant
    target: GPUTarget

    def __str__(self) -> str:
        variant = self.variant
        return (
            f"{self.target.arch} {self.kind} {self.shape_class}, {self.direction}, {variant.element} with "
            f"{variant.adapter} adapters, r={variant.r}, {_way(variant)}"
            f"{', dropout' if variant.dropout else ''}{', bias' if variant.bias else ''}"
            f"{', cut' if variant.cut else ''}"
        )


def _way(variant: Variant) -> str:
    loads, stores = ("TMA" if tma else "pointers" for tma in (variant.tma, variant.stores_through_tma))
    return loads if loads == stores else f"loads by {loads}, stores by {stores}"


def cases(architectures: list[str], *, every_variant: bool) -> Iterator[Case]:
    """The kernels to compile: of each entry and target the most demanding variants, or all of them."""
    for architecture in architectures:
        for kind, classes in load_table(architecture).entries.items():
            for (shape_class, entry), direction in itertools.product(
                classes.items(), ("forward", "backward")
            ):
                tile = getattr(entry, direction)
                where = (architecture, kind, shape_class, direction, tile)
                yield from tile_cases(*where, every_variant=every_variant)


def tile_cases(
    architecture: str, kind: str, shape_class: str, direction: str, tile: Tile, *, every_variant: bool
) -> Iterator[Case]:
    """The kernels of one tile, whether or not it is in the table."""
    make = all_variants if every_variant else demanding_variants
    for target in TARGETS[architecture]:
        # There are enough wide tiles for every multiprocessor: these are never cut.
        for variant in make(kind, direction, tma=takes_tma(architecture, kind), cut=shape_class != "wide"):
            yield Case(architecture, kind, shape_class, direction, tile, variant, target)


def demanding_variants(kind: str, direction: str, *, tma: bool, cut: bool) -> list[Variant]:
    """Those that take most shared memory (p and q are fp32 in the pipeline) and most registers."""
    bias = direction == "forward"
    if kind == "half":
        return [
            Variant("bf16", adapter, 64, tma, dropout=True, bias=bias, cut=cut)
            for adapter in ("bf16", "fp32")
        ]
    return [Variant("fp32", "fp32", 64, tma, kind, dropout=True, bias=bias, cut=cut)]


def all_variants(kind: str, direction: str, *, tma: bool, cut: bool) -> Iterator[Variant]:
    """Every dtype, adapter dtype, way of loading, dropout and bias; then every block of ranks, uncut."""
    dtypes = [("fp32", "fp32", kind)]
    if kind == "half":
        dtypes = [(x, adapter, "ieee") for x in ("bf16", "fp16") for adapter in (x, "fp32")]
    # Where there is TMA, wide tiles, which are never cut, are taken with it only.
    loads = ((True, False) if cut else (True,)) if tma else (False,)
    biases = (True, False) if direction == "forward" else (False,)
    for (element, adapter, precision), load, dropout, bias in itertools.product(
        dtypes, loads, (False, True), biases
    ):
        yield Variant(element, adapter, 64, load, precision, dropout, bias, cut)
    for (element, adapter, precision), r in itertools.product(dtypes[:2], (8, 24)):
        yield Variant(element, adapter, r, tma, precision, bias=biases[0])
    if tma:
        # Rows of x and W start on 16 bytes where those of y do not, or the other way about.
        for load in loads:
            yield Variant(*dtypes[0][:2], 64, load, dtypes[0][2], True, biases[0], cut, tma_store=not load)


def faults(case: Case, made: Resources) -> list[str]:
    """What is wrong with a compiled kernel, as phrases; none if it may be shipped."""
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
    # The instruction takes 64 rows.
    wants_wgmma = case.architecture == "sm_90" and case.kind != "ieee" and case.tile.rows >= 64
    if wants_wgmma and "wgmma.mma_async" not in made.assembly:
        found.append("has no wgmma")
    return found


def _hand_over_faults(ptx: str, direction: str) -> list[str]:
    """The order of a hand-over: stores, barrier, release; acquire, barrier, loads past L1."""
    # A tile is published with release: Triton 3.6 makes an atom of it, 3.9 a red, which returns nothing. A
    # part arrives with both in one.
    release, acquire, both, load = "release.add", "gpu.acquire", "acq_rel.add", "ld.global.cg"
    events = re.findall(r"st\.global|bar\.sync|release\.add|gpu\.acquire|acq_rel\.add|ld\.global\.cg", ptx)
    found = [f"has no {event}" for event in (release, acquire, both) if event not in events]
    for index, event in enumerate(events):
        if event in (release, both) and events[index - 1] != "bar.sync":
            found.append(f"hands over by {event} without a barrier after its stores")
        # The backward's dB tiles read p past L1 as well, which an earlier launch wrote.
        if event == load and direction == "forward" and not {acquire, both} & set(events[:index]):
            found.append("reads what was handed over before it acquires it")
        if event in (acquire, both) and "bar.sync" not in events[index + 1 : _next(events, load, index)]:
            found.append(f"reads what it acquired by {event} without a barrier in between")
    return found


def _next(events: list[str], event: str, index: int) -> int:
    """Where `event` next stands after `index`, or the end."""
    return events.index(event, index) if event in events[index:] else len(events)


def check(case: Case) -> tuple[str, list[str]]:
    """Compile a kernel; a line on what it takes, and its faults."""
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
    if not todo:
        parser.error(f"--only {options.only!r}: no kernel's line holds this")
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for line, found in pool.map(check, todo):
            failed += bool(found)
            print(" | ".join([line, *(f"FAULT: {fault}" for fault in found)]), flush=True)
    print(f"Triton {triton.__version__}: {len(todo) - failed} kernels within the gate, {failed} with faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
