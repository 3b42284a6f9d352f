"""The faults that are planted in the persistent backward kernel for sm_90 alone: dB, dA, their terms."""

from __future__ import annotations

from typing import Final

from tests.ptx.driver.mutants import Mutant

_LOADER: Final = "hopper.backward.load_backward"
_TILE: Final = "hopper.output_tile.output_tile"
_LOAD: Final = "hopper.gradient_tile.load_gradient_tile"
_GRADIENT: Final = "hopper.gradient_tile.gradient_tile"
_TERMS: Final = "hopper.handover.store_terms"
_COPIES: Final = "adapter_terms.adapter_terms_kernel"

_COLUMNS: Final = "persistent backward, columns"
_MANY_ROWS: Final = "persistent backward, many rows"
_ONE_PROGRAM: Final = "persistent backward, one block of rows"
_FP32: Final = "persistent backward, fp32 adapters"

_WAIT: Final = "            wait_for(workspace_ptr + ALL_ROWS, 2 * num_rows)\n"
_FENCE: Final = "            fence_proxy()\n"
_PUBLISH: Final = "            publish(workspace_ptr + ALL_ROWS)\n"
_STORE_SUM: Final = "        gl.store(pointers, acc)\n"
_PUBLISH_BAND: Final = "        publish(bands_ptr)\n"
_LOAD_P: Final = "            p = load_part(p_ptr"


def _mutant(
    name: str, case: str, *changes: tuple[str, str, str], redundant: str = "", needs_two: bool = False
) -> Mutant:
    return Mutant(f"persistent backward: {name}", case, changes, redundant, needs_two)


_HAND_OVER: Final = (
    _mutant("dB and dA do not wait for q and p", _MANY_ROWS, (_LOADER, _WAIT, "")),
    _mutant(
        "dB and dA wait for one part less",
        "persistent backward, two resident",
        (_LOADER, "2 * num_rows)\n", "2 * num_rows - 1)\n"),
    ),
    _mutant("dx does not wait for q", _COLUMNS, (_TILE, "        wait_for(flag_ptr, 1)\n", "")),
    _mutant("the terms are never published", _MANY_ROWS, (_TILE, _PUBLISH, "")),
    _mutant(
        "the terms are published before p's are stored",
        _MANY_ROWS,
        (_TILE, _PUBLISH, ""),
        (_TILE, _LOAD_P, _PUBLISH + _LOAD_P),
    ),
    _mutant(
        "who loads terms has no fence between proxies",
        _MANY_ROWS,
        (_LOADER, _FENCE, ""),
        redundant="one fence on the way from store to load is enough, and who stores them has one",
    ),
    _mutant(
        "who stores terms has no fence between proxies",
        _MANY_ROWS,
        (_TILE, _FENCE, ""),
        redundant="one fence on the way from store to load is enough, and who loads them has one",
    ),
    _mutant(
        "nobody has a fence between proxies for terms", _MANY_ROWS, (_LOADER, _FENCE, ""), (_TILE, _FENCE, "")
    ),
)

_BANDS: Final = (
    _mutant(
        "a band does not wait for the one before",
        _MANY_ROWS,
        (_GRADIENT, "        wait_for(bands_ptr, band)\n", ""),
    ),
    _mutant(
        "a band waits for one band less",
        _MANY_ROWS,
        (_GRADIENT, "wait_for(bands_ptr, band)", "wait_for(bands_ptr, band - 1)"),
    ),
    _mutant(
        "a band does not add to the sum so far",
        _MANY_ROWS,
        (_GRADIENT, "        acc += load_part(sums_ptr, 0, STEP, BLOCK_R, layout, STEP, BLOCK_R)\n", ""),
    ),
    _mutant(
        "a sum is published before it is stored",
        _MANY_ROWS,
        (_GRADIENT, _STORE_SUM + _PUBLISH_BAND, _PUBLISH_BAND + _STORE_SUM),
    ),
    _mutant("a sum is never published", _MANY_ROWS, (_GRADIENT, _PUBLISH_BAND, "")),
    _mutant(
        "both groups have one sum",
        _MANY_ROWS,
        ("hopper.backward.multiply_backward", "part = 2 * gradient + HALF", "part = 2 * gradient"),
    ),
    _mutant(
        "a band ends a block of rows early",
        _MANY_ROWS,
        (
            _LOAD,
            "gl.minimum(M, (band + 1) * (GROUP * BLOCK_M))",
            "gl.minimum(M - BLOCK_M, (band + 1) * (GROUP * BLOCK_M))",
        ),
    ),
    _mutant(
        "every band has the rows of the first",
        _COLUMNS,
        ("hopper.order.backward_task", "first = band * GROUP", "first = 0"),
    ),
    _mutant(
        "a band has no tile of dB and dA at its end",
        _COLUMNS,
        ("hopper.order.backward_task", "gradient = within - height", "gradient = within - 1 - height"),
    ),
    _mutant(
        "dA's tiles begin a tile early", _COLUMNS, (_LOADER, "(gradient - num_dB)", "(gradient - num_dB + 1)")
    ),
)

_LOADS: Final = (
    _mutant(
        "bytes of terms are not waited for", _MANY_ROWS, (_LOAD, "2 * STEP + TERMS * BLOCK_R", "2 * STEP")
    ),
    _mutant(
        "dB takes q's terms", _MANY_ROWS, (_LOADER, "operands[0], terms, TERMS,", "operands[0], terms, 0,")
    ),
    _mutant("dA takes p's terms", _MANY_ROWS, (_LOADER, "x, terms, 0,", "x, terms, TERMS,")),
    _mutant(
        "both terms of p and q are the high one", _FP32, (_LOAD, "(first + term) * rows", "first * rows")
    ),
    _mutant(
        "terms lie on the second group's block",
        _MANY_ROWS,
        (
            "hopper.gradient_tile.terms_of",
            "BEHIND: gl.constexpr = STEP // BLOCK_R",
            "BEHIND: gl.constexpr = 0",
        ),
    ),
    _mutant(
        "B's low term is read where its rows end",
        _FP32,
        ("hopper.output_tile.load_output_tile", "gl.cdiv(inner, STEP) * STEP", "inner"),
    ),
)

_TERM_FAULTS: Final = (
    _mutant("p's terms lie on q's low one", _FP32, (_TILE, "small_ptr + TERMS * rows", "small_ptr + rows")),
    _mutant(
        "the low term is not what is left", _FP32, (_TERMS, "(part - high.to(gl.float32))", "(part - part)")
    ),
    _mutant(
        "the low term lies on the high one",
        _FP32,
        (_TERMS, "gl.store(pointers + rows * BLOCK_R,", "gl.store(pointers,"),
    ),
    _mutant(
        "a gradient's low term is left out", _FP32, (_GRADIENT, "static_range(TERMS)", "static_range(1)")
    ),
    _mutant(
        "q's low term is left out",
        _FP32,
        ("hopper.output_tile.multiply", "static_range(TERMS)", "static_range(1)"),
    ),
    _mutant(
        "B's low term is not copied",
        _FP32,
        ("adapter_terms._store_terms", "value - high.to(tl.float32)", "value"),
    ),
    _mutant(
        "counters are not zeroed",
        _FP32,
        (_COPIES, "    tl.store(workspace_ptr + counters, 0, mask=counters < num_counters)", "    pass"),
    ),
    _mutant(
        "the last counter is not zeroed",
        _FP32,
        (_COPIES, "counters < num_counters", "counters < num_counters - 1"),
    ),
)

_PRODUCTS: Final = (
    _mutant(
        "a slot is released while its product runs",
        _MANY_ROWS,
        (
            _GRADIENT,
            "ring.empty.index(step_back(slot, STAGES)), count=1, pred=row > start",
            "ring.empty.index(slot), count=1",
        ),
    ),
    _mutant(
        "the last slot is never released",
        _ONE_PROGRAM,
        (_GRADIENT, "    mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1)\n", ""),
    ),
    _mutant("one product more runs on", _MANY_ROWS, (_GRADIENT, "wait(TERMS, deps", "wait(1 + TERMS, deps")),
    _mutant("a sum is taken while its product runs", _MANY_ROWS, (_GRADIENT, "wait(0, deps", "wait(1, deps")),
)

PERSISTENT_BACKWARD_MUTANTS: Final = (*_HAND_OVER, *_BANDS, *_LOADS, *_TERM_FAULTS, *_PRODUCTS)
