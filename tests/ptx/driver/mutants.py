"""The faults that are planted in the kernels (`plant.py`), to see whether a run finds them."""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.ptx.driver.cases import Case, small_tiles


class Mutant(NamedTuple):
    """One planted fault.

    Attributes:
        name: What is wrong.
        case: A key of CASES.
        changes: (module.function, text, its replacement); the function "ptx" means the compiled text and a
            regular expression, and "barriers before" or "after" the barriers around the instructions that
            hold the text.
        redundant: Why it changes nothing that a GPU could show, where that is so; "" for a fault.
        needs_two: Whether it shows only in a comparison of two schedules' bits.
    """

    name: str
    case: str
    changes: tuple[tuple[str, str, str], ...] = ()
    redundant: str = ""
    needs_two: bool = False


def _case(architecture: str, **options: object) -> Case:
    base = Case(architecture, dtype="bf16", M=70, K=136, N=72, r=16)
    return base._replace(tiles=small_tiles(architecture, "half"))._replace(**options)


# In "split" the plan has three programs share a tile of p and y; in "ranks" p and q have two tiles a row.
CASES: Final = {
    "sm_80": _case("sm_80"),
    "sm_90": _case("sm_90"),
    "dropout": _case("sm_80", dropout=0.25),
    "ranks": _case("sm_80", r=100),
    "wide adapters": _case("sm_80", adapter="fp32"),
    "split": _case("sm_80", M=40, K=776, N=40, passes=("forward",)),
    "ragged": _case("sm_80", M=50, K=203, N=101),
    "exact": _case("sm_80", dtype="fp32", tiles=small_tiles("sm_80", "ieee"), K=40, N=40),
    "fp32 on fp16": _case("sm_80", dtype="fp16", adapter="fp32", values="beyond fp16"),
    "large s p": _case("sm_80", dtype="fp16", values="beyond fp16"),
}

_WAIT_FOR_ROWS = "wait_for(workspace_ptr + counters.flags + m, tiles.ranks)"
_WAIT_FOR_ALL = "wait_for(workspace_ptr + counters.all_rows, tiles.q)"
_PUBLISH_P = "publish(workspace_ptr + counters.flags + m)"
_STORE_SPLIT = "tl.store(first_ptr + split.index * (ROWS * COLUMNS) + within, acc)"
_ARRIVE = 'has_sum = tl.atomic_add(split.arrivals_ptr + split.tile, 1, sem="acq_rel") == split.count - 1'
_DROP = "block = drop(block, mask[0], mask[1], row, column, BLOCK_M, BLOCK_C)"
_PHILOX = "seed, offs_block[None, :] + zero, offs_row[:, None] + zero"

MUTANTS: Final = (
    Mutant("publish is relaxed", "sm_80", (("handover.publish", '"release"', '"relaxed"'),)),
    Mutant(
        "publish without the barrier of its own",
        "sm_80",
        (("handover.publish", "tl.debug_barrier()", "pass"),),
        "Triton puts a barrier of its own before an atomic",
    ),
    Mutant("no barrier before publish", "sm_80", (("barriers before", "red.global.gpu.release", ""),)),
    Mutant("the wait is relaxed", "sm_80", (("handover.wait_for", '"acquire"', '"relaxed"'),)),
    Mutant(
        "the wait without the barrier of its own",
        "sm_80",
        (("handover.wait_for", "    tl.debug_barrier()", "    pass"),),
        "one thread acquires, and hands on what it read through shared memory and a barrier",
    ),
    Mutant("no barriers after the wait", "sm_80", (("barriers after", "ld.global.gpu.acquire", ""),)),
    Mutant(
        "no barriers before a split arrives", "split", (("barriers before", "atom.global.gpu.acq_rel", ""),)
    ),
    Mutant(
        "no barriers after a split arrives", "split", (("barriers after", "atom.global.gpu.acq_rel", ""),)
    ),
    Mutant("y does not wait", "sm_80", (("forward.forward_kernel", _WAIT_FOR_ROWS, "pass"),)),
    Mutant("dx does not wait", "sm_80", (("backward.backward_kernel", _WAIT_FOR_ROWS, "pass"),)),
    Mutant("dA does not wait", "sm_80", (("backward.backward_kernel", _WAIT_FOR_ALL, "pass"),)),
    Mutant(
        "y waits for one tile less",
        "ranks",
        (("forward.forward_kernel", "tiles.ranks)\n", "tiles.ranks - 1)\n"),),
    ),
    Mutant(
        "dx waits for one tile less",
        "ranks",
        (("backward.backward_kernel", "tiles.ranks)\n", "tiles.ranks - 1)\n"),),
    ),
    Mutant(
        "dA waits for one tile less", "sm_80", (("backward.backward_kernel", "tiles.q)\n", "tiles.q - 1)\n"),)
    ),
    Mutant(
        "p is published before it is stored",
        "sm_80",
        (
            ("forward.forward_kernel", _PUBLISH_P, "pass"),
            (
                "forward.forward_kernel",
                "is_stored = project_tile(",
                f"{_PUBLISH_P}\n        is_stored = project_tile(",
            ),
        ),
    ),
    Mutant(
        "a split arrives before it is stored",
        "split",
        (
            ("split_k.sum_of_splits", _STORE_SPLIT, _ARRIVE),
            (
                "split_k.sum_of_splits",
                f"tl.debug_barrier()\n        {_ARRIVE}",
                f"{_STORE_SPLIT}\n        tl.debug_barrier()",
            ),
        ),
    ),
    Mutant("arrivals only release", "split", (("split_k.sum_of_splits", '"acq_rel"', '"release"'),)),
    Mutant("arrivals only acquire", "split", (("split_k.sum_of_splits", '"acq_rel"', '"acquire"'),)),
    Mutant(
        "splits are summed in another order by who came last",
        "split",
        (
            (
                "split_k.sum_of_splits",
                "first_ptr + other *",
                "first_ptr + ((split.index + other) % split.count) *",
            ),
        ),
        needs_two=True,
    ),
    Mutant(
        "loads mask one row too few", "sm_80", (("tile_ops.load_tile", "< num_rows)", "< num_rows - 1)"),)
    ),
    Mutant("loads forget rows", "ragged", (("tile_ops.load_tile", "< num_rows)", "< num_rows + 64)"),)),
    Mutant(
        "loads forget columns", "ragged", (("tile_ops.load_tile", "< num_columns)", "< num_columns + 64)"),)
    ),
    Mutant("stores forget rows", "ragged", (("tile_ops.store_tile", "< M)", "< M + 64)"),)),
    Mutant("stores forget columns", "ragged", (("tile_ops.store_tile", "< C)", "< C + 64)"),)),
    Mutant(
        "the dropout mask is of the transposed index",
        "dropout",
        (("dropout.keep_mask", _PHILOX, "seed, offs_row[:, None] + zero, offs_block[None, :] + zero"),),
    ),
    Mutant(
        "the dropout mask of dA is a row off",
        "dropout",
        (("low_rank_products.add_gradient", _DROP, _DROP.replace("row,", "row + 1,")),),
    ),
    Mutant(
        "the dropout mask has one column off",
        "dropout",
        (("dropout.keep_mask", "column // _LANES", "column // _LANES + 1"),),
    ),
    Mutant(
        "dropped at > and not at >=", "dropout", (("dropout.keep_mask", ">= threshold", "> threshold + 40"),)
    ),
    Mutant(
        "the low term is left out",
        "wide adapters",
        (("low_rank_products.dot_adapter", "if TWO_TERMS:", "if False:"),),
    ),
    Mutant(
        "p and q of fp32 adapters become two terms of fp16",
        "fp32 on fp16",
        (
            (
                "low_rank_products.dot_adapter",
                "if block.dtype.is_fp16() and not ADAPTER.is_fp16():",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "the low term is left out in tf32",
        "fp32 on fp16",
        (("low_rank_products.dot_adapter", "if TWO_TERMS:", "if False:"),),
    ),
    Mutant(
        "p and q of fp32 adapters are rounded to fp16 for y and dx",
        "fp32 on fp16",
        (("tile_ops.add_low_rank", "if IN_TF32:", "if False:"),),
    ),
    Mutant(
        "s p is rounded to fp16 with all of s",
        "large s p",
        (("tile_ops.add_low_rank", "if IS_SCALED:", "if False:"),),
    ),
    Mutant(
        "later ranks are left out",
        "ranks",
        (("tile_ops.add_low_rank", "tl.range(0, r, STEP", "tl.range(0, STEP, STEP"),),
    ),
    Mutant(
        "the bias is a column off",
        "ragged",
        (("forward.forward_kernel", "b_ptr + offs_n, mask", "b_ptr + tl.maximum(offs_n - 1, 0), mask"),),
    ),
    Mutant(
        "tf32 where exact products are asked for",
        "exact",
        (("low_rank_products.dot_adapter", "input_precision=PRECISION", 'input_precision="tf32"'),),
    ),
    Mutant("copies are not waited for", "sm_80", (("ptx", r"cp\.async\.wait_group.*", ""),)),
    Mutant(
        "a wait for copies leaves one group more",
        "sm_80",
        (("ptx", r"(cp\.async\.wait_group\s+)0", r"\g<1>1"),),
    ),
    Mutant("all barriers of a CTA are removed", "sm_80", (("ptx", r"bar\.sync.*", ""),)),
    Mutant("TMA loads are not waited for", "sm_90", (("ptx", "@!complete bra.uni waitLoop;", ""),)),
    Mutant(
        "wrong parity",
        "sm_90",
        (
            (
                "ptx",
                r"(mbarrier\.try_wait.*), (%r\d+);",
                r".reg .b32 flipped; xor.b32 flipped, \2, 1; \1, flipped;",
            ),
        ),
    ),
    Mutant(
        "no bytes are expected",
        "sm_90",
        (("ptx", r"(mbarrier\.arrive)\.expect_tx(.*),[^,]*;", r"\1\2;"),),
    ),
    Mutant("wgmma is not waited for", "sm_90", (("ptx", r"wgmma\.wait_group.*", ""),)),
    Mutant("no wgmma fence", "sm_90", (("ptx", r"wgmma\.fence.*", ""),)),
    Mutant("no proxy fences", "sm_90", (("ptx", r"fence\.proxy\.async.*", ""),)),
    Mutant(
        "TMA stores are not waited for",
        "sm_90",
        (("ptx", r"cp\.async\.bulk\.wait_group.*", ""),),
    ),
)
