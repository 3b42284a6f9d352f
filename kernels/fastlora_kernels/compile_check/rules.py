"""Rules for a compiled kernel: shared memory, no spills, matrix instructions, and a correct hand-over."""

import re

from fastlora_kernels.compile_check.compiler import Resources, checked, compile_kernel, faults_of_resources
from fastlora_kernels.compile_check.hand_over import hand_over_faults
from fastlora_kernels.compile_check.hand_over_events import Kernel
from fastlora_kernels.compile_check.variants import Case
from fastlora_kernels.configs import segment_rank_block
from fastlora_kernels.tables import load_table


def faults(
    case: Case, made: Resources, block_r: int | None = None, members: int = 1, *, rows: str = ""
) -> list[str]:
    """The rules that a compiled kernel breaks, as phrases; empty if it may be shipped.

    Args:
        case: What was compiled.
        made: The result.
        block_r: Ranks in a block; None means those of a layer's kernel.
        members: How many projections publish tiles of q for each block of rows and ranks.
        rows: As in `hand_over_events.Kernel`.
    """
    found = faults_of_resources(made, load_table(case.architecture).shared_memory)
    if case.target.backend == "cuda":
        variant = case.variant
        if block_r is None and rows:
            block_r = segment_rank_block(
                variant.r, case.architecture, variant.kind, variant.wide_adapters, variant.tf32_terms
            )
        elif block_r is None:
            block_r = variant.block_r(case.architecture, case.tile)
        kernel = Kernel(case.direction, made.arguments, case.tile, block_r, members, rows)
        found += hand_over_faults(made.assembly, kernel)
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


def check(case: Case) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_case, faults)


def compile_case(case: Case) -> Resources:
    """Compile one kernel as it is launched."""
    return compile_kernel(case.direction, case.architecture, case.tile, case.variant, case.target)
