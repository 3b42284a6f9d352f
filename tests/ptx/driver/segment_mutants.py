"""The faults that are planted in the kernels for rows that choose their operands."""

from __future__ import annotations

from typing import Final

from tests.ptx.driver.mutants import Mutant
from tests.ptx.driver.segment_cases import MIXED, SegmentCase

_EXPERTS: Final = SegmentCase("sm_80", rows=(33, 0, 1, 20, 3), K=72, N=40)

SEGMENT_CASES: Final = {
    "experts": _EXPERTS,
    "experts on sm_90": _EXPERTS._replace(architecture="sm_90", N=128),
    "factors": _EXPERTS._replace(weighted=True),
    "adapters": _EXPERTS._replace(**MIXED),
    "adapters that drop": _EXPERTS._replace(**MIXED, dropout=0.25),
}

_FORWARD: Final = "segment_forward.segment_forward_kernel"
_BACKWARD: Final = "segment_backward.segment_backward_kernel"
_WAIT_FOR_ALL: Final = "wait_for(workspace_ptr + counters.all_rows, tiles.q)"
_STORE_DX: Final = "store_tile(dx_ptr, acc, row, column, end, K"

SEGMENT_MUTANTS: Final = (
    Mutant(
        "y is stored beyond its run",
        "experts",
        ((_FORWARD, "acc, begin, column, end, N", "acc, begin, column, begin + BLOCK_M, N"),),
    ),
    Mutant(
        "y is stored beyond its run, on sm_90",
        "experts on sm_90",
        ((_FORWARD, "acc, begin, column, end, N", "acc, begin, column, begin + BLOCK_M, N"),),
    ),
    Mutant(
        "dx is stored beyond its run",
        "experts",
        (("segment_backward.finish_dx", _STORE_DX, _STORE_DX.replace("end", "row + BLOCK_M")),),
    ),
    Mutant(
        "every expert takes the first W",
        "experts",
        (("segment_tables.weights_of", "operand.to(tl.int64) * stride_e", "operand.to(tl.int64) * 0"),),
    ),
    Mutant(
        "every expert takes the first W, on sm_90",
        "experts on sm_90",
        (("segment_tables.weights_of", "(W, operand * N)", "(W, operand * 0)"),),
    ),
    Mutant(
        "dA and dB take rows of the next run",
        "experts",
        (
            (
                "segment_gradients.operand_gradient_tile",
                "small_ptr, weights_ptr, mask, begin, end, column, rank, end,",
                "small_ptr, weights_ptr, mask, begin, end, column, rank, end + 8,",
            ),
        ),
    ),
    Mutant(
        "a run without a whole block has no tile",
        "experts",
        (("segment_plan.segment_plan_kernel", "tl.cdiv(end - begin, BLOCK_M)", "(end - begin) // BLOCK_M"),),
    ),
    Mutant(
        "a tile ends with its block",
        "experts",
        (("segment_plan.segment_plan_kernel", "tl.minimum(row + BLOCK_M, end)", "row + BLOCK_M"),),
    ),
    Mutant("dA of experts does not wait", "experts", ((_BACKWARD, _WAIT_FOR_ALL, "column = column"),)),
    Mutant(
        "the factors of rows are left out",
        "factors",
        (("low_rank_products.add_gradient", "small *= tl.load(", "small += 0 * tl.load("),),
    ),
    Mutant(
        "y waits for one segment alone",
        "adapters",
        ((_FORWARD, "segments_to_wait_for(tables, m) * tiles.ranks", "tiles.ranks"),),
    ),
    Mutant(
        "rows before a segment get its update",
        "adapters",
        (("segment_updates.add_segment", "PRECISION, begin", "PRECISION, row"),),
    ),
    Mutant(
        "p is read where all ranks were the largest",
        "adapters",
        (("segment_updates.add_segment", "run.to(tl.int64) * (alike[1] - rank)", "run.to(tl.int64) * 0"),),
    ),
    Mutant(
        "an adapter's last run is left out of dA and dB",
        "adapters",
        (
            (
                "segment_gradients.operand_gradient_tile",
                "tl.load(firsts_ptr + operand + 1)",
                "tl.load(firsts_ptr + operand) + 1",
            ),
        ),
    ),
    Mutant(
        "adapters have eight ranks more than the first",
        "adapters",
        (
            (
                "segment_tables.load_adapter",
                "tl.load(rank_ptr + 1)",
                "tl.load(ranks_ptr + 1) + 8",
            ),
        ),
    ),
    Mutant(
        "dx drops at the rate of the launch",
        "adapters that drop",
        (
            (
                "segment_updates.add_segment",
                "mask = (tl.load(seed_ptr), threshold)",
                "mask = (tl.load(seed_ptr), 16384)",
            ),
        ),
    ),
)
