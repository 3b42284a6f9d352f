"""Compiles the kernels for rows that choose their operands, for the tile tables' entries, and checks them.

The variants are the plain kernels'. Rows choose experts (sorted, all of one rank) or adapters (as they come,
each with its rank).
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from fastlora_kernels.compile_check.compiler import (
    SIXTEENS,
    Constant,
    Resources,
    checked,
    compile_with,
    kind_read,
    kinds_of_both,
)
from fastlora_kernels.compile_check.rules import faults
from fastlora_kernels.compile_check.variants import Case, representative_cases
from fastlora_kernels.configs import launch_options, segment_class, segment_rank_block
from fastlora_kernels.segment_backward import segment_backward_kernel
from fastlora_kernels.segment_forward import segment_forward_kernel

ROWS: Final = ("experts", "adapters")


class SegmentCase(NamedTuple):
    """One kernel to compile: a variant of the plain kernel's, and what its rows choose."""

    case: Case
    rows: str

    def __str__(self) -> str:
        return f"{self.case}, rows choose {self.rows}"


def segment_cases(architectures: list[str], *, every_variant: bool) -> Iterator[SegmentCase]:
    """The kernels to compile: those of representative variants, or of all."""
    seen = set()
    for case in representative_cases(architectures, every_variant=every_variant):
        wide = case.variant.wide_adapters
        taken = segment_class(case.shape_class, case.architecture, case.direction, wide)
        if case.shape_class == "wide" or taken != case.shape_class:  # which these kernels never take
            continue
        # y and dx are stored by pointers.
        case = case._replace(variant=case.variant._replace(tma_store=False))
        for rows in ROWS:
            one = SegmentCase(case, rows)
            if one not in seen:
                seen.add(one)
                yield one


def check_segments(one: SegmentCase) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(one, compile_segments, lambda one, made: faults(one.case, made, rows=one.rows))


def compile_segments(one: SegmentCase) -> Resources:
    """Compile one kernel as it is launched."""
    case = one.case
    is_forward = case.direction == "forward"
    kernel = segment_forward_kernel if is_forward else segment_backward_kernel
    kinds = _kinds(one) | (_forward_kinds(case) if is_forward else _backward_kinds(case, one.rows))
    return compile_with(kernel, kinds, launch_options(case.tile, case.target.backend), case.target)


def _kinds(one: SegmentCase) -> dict[str, Any]:
    case, variant = one.case, one.case.variant
    kinds = kinds_of_both(case.architecture, case.tile, variant)
    is_mixed = one.rows == "adapters"
    block_r = segment_rank_block(
        variant.r, case.architecture, variant.kind, variant.wide_adapters, variant.tf32_terms
    )
    W = kind_read(variant, case.tile.block_n, case.tile.block_k)
    return kinds | {
        "W": W if variant.tma else (W[0], SIXTEENS, *W[1:]),
        "A_ptr": f"*{variant.adapter}",
        "B_ptr": f"*{variant.adapter}",
        "scratch_ptrs": ("*fp32", "*fp32" if variant.split_k else Constant(None)),
        "tiles_ptr": "*i32",
        "segments_ptr": "*i32" if is_mixed else Constant(None),
        "ranks_ptr": "*i32" if is_mixed else Constant(None),
        "scales_ptr": "*fp32" if is_mixed else Constant(None),
        "num_tiles": "i32",
        "num_segments": "i32",
        "num_operands": "i32",
        "BLOCK_R": Constant(block_r),
    }


def _forward_kinds(case: Case) -> dict[str, Any]:
    variant, tile = case.variant, case.tile
    return {
        "x": kind_read(variant, tile.block_m, tile.block_k),
        "b_ptr": f"*{variant.element}" if variant.bias else Constant(None),
        "y_ptr": f"*{variant.element}",
        "split_p": "i32",
        "split_y": "i32",
    }


def _backward_kinds(case: Case, rows: str) -> dict[str, Any]:
    variant, tile = case.variant, case.tile
    by_pointers = kind_read(variant._replace(tma=False), 0, 0)
    return {
        "dy": kind_read(variant, tile.block_m, tile.block_n),
        "dy_rows": by_pointers,
        "x": by_pointers,
        "q_ptr": "*fp32",
        "dx_ptr": f"*{variant.element}",
        "dA_ptr": f"*{variant.adapter}",
        "dB_ptr": f"*{variant.adapter}",
        "weights_ptr": "*fp32" if rows == "experts" else Constant(None),
        "runs_ptr": "*i64" if rows == "experts" else "*i32",
        "firsts_ptr": "*i32" if rows == "adapters" else Constant(None),
        "split_q": "i32",
        "split_dx": "i32",
        "BLOCK_K_DA": Constant(tile.block_k_dA),
    }
