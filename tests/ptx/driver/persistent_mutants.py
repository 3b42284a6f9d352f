"""The faults that are planted in the persistent kernels for sm_90."""

from __future__ import annotations

from typing import Final

from tests.ptx.driver.mutants import Mutant
from tests.ptx.driver.persistent import BASE

_FORWARD: Final = BASE._replace(passes=("forward",))
_BACKWARD: Final = BASE._replace(passes=("backward",), K=136)
# Tiles of dx have 256 columns: two of them, the second of which waits for q, where K is 264.
PERSISTENT_CASES: Final = {
    "persistent": _FORWARD,
    "persistent, two resident": _FORWARD._replace(resident=2, M=300),
    "persistent, fp16": _FORWARD._replace(dtype="fp16", values="beyond fp16"),
    "persistent backward": _BACKWARD,
    "persistent backward, columns": _BACKWARD._replace(K=264),
    "persistent backward, many rows": _BACKWARD._replace(M=700, K=8, N=8),
    "persistent backward, two resident": _BACKWARD._replace(K=8, N=520, resident=2),
    "persistent backward, four resident": _BACKWARD._replace(M=64, K=776, N=8, resident=4),
    "persistent backward, one block of rows": _BACKWARD._replace(M=64, K=520, N=520, programs=1),
    "persistent backward, fp32 adapters": _BACKWARD._replace(adapter="fp32", K=264),
}

_RING: Final = "hopper.ring."
_TILE: Final = "hopper.output_tile."
_FORWARD_KERNEL: Final = "hopper.forward.hopper_forward_kernel"
_RELEASE_LAST: Final = "    mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1)\n"
_RELEASE_GROW: Final = "    mbarrier.arrive(ring.empty.index(slot), count=1)\n"
_PUBLISH: Final = "            publish(flag_ptr)\n"
_STORE_SMALL: Final = "            gl.store(pointers, small, mask=inside)\n"
_FLAG: Final = "FLAGS + 2 * m + HALF"


def _mutant(name: str, place: str, old: str, new: str, case: str = "persistent") -> Mutant:
    return Mutant(f"persistent: {name}", case, ((place, old, new),))


_PARITIES: Final = (
    _mutant(
        "the loading warp starts with the wrong parity",
        "hopper.forward.load_forward",
        "phase = 1",
        "phase = 0",
    ),
    _mutant(
        "a group starts with the wrong parity", "hopper.forward.multiply_forward", "phase = 0", "phase = 1"
    ),
    _mutant("the parity of the ring never changes", f"{_RING}step_on", "phase ^ 1, phase", "phase, phase"),
    _mutant(
        "wrong parity of the wait for B",
        f"{_TILE}output_tile",
        "mbarrier.wait(ring.full.index(slot), phase)",
        "mbarrier.wait(ring.full.index(slot), phase ^ 1)",
    ),
    _mutant("wrong parity of the mailbox", f"{_RING}take", "(count >> 1) & 1)", "((count >> 1) & 1) ^ 1)"),
)

_ARRIVALS: Final = (
    _mutant("B's slot is never released", f"{_TILE}output_tile", _RELEASE_GROW, ""),
    _mutant("the last slot of a tile is never released", f"{_TILE}output_tile", _RELEASE_LAST, ""),
    _mutant("B's slot is released twice", f"{_TILE}output_tile", _RELEASE_GROW, 2 * _RELEASE_GROW),
    _mutant("a slot waits for one group", f"{_RING}make_ring_barriers", "count=GROUPS", "count=1"),
    _mutant("a letter waits for one group", f"{_RING}make_mail", "count=GROUPS", "count=1"),
    _mutant(
        "a slot is released while its product runs",
        f"{_TILE}multiply",
        "ring.empty.index(step_back(slot, STAGES)), count=1, pred=k > 0",
        "ring.empty.index(slot), count=1",
    ),
)

_BYTES: Final = (
    _mutant(
        "A's bytes are not waited for", f"{_TILE}load_output_tile", "BLOCK_C + TERMS * BLOCK_R)", "BLOCK_C)"
    ),
    _mutant("too few bytes of W", f"{_TILE}load_output_tile", "(BLOCK_M + BLOCK_C) * STEP", "BLOCK_M * STEP"),
    _mutant("too many bytes of B", f"{_TILE}load_output_tile", "BLOCK_C * STEP * 2)", "BLOCK_C * STEP * 4)"),
    _mutant("the ring of x is a stage short", _FORWARD_KERNEL, "[STAGES, BLOCK_M", "[STAGES - 1, BLOCK_M"),
    _mutant("the ring of W is a stage short", _FORWARD_KERNEL, "[STAGES, BLOCK_C", "[STAGES - 1, BLOCK_C"),
    _mutant("both groups wait to store in one buffer", _FORWARD_KERNEL, "y, lower, ring", "y, upper, ring"),
)

_PRODUCTS: Final = (
    _mutant("one product more runs on", f"{_TILE}multiply", "wait(1, deps=[acc])", "wait(2, deps=[acc])"),
    _mutant(
        "one product more runs on in the first column",
        f"{_TILE}multiply",
        "wait(1 + TERMS, deps",
        "wait(3 + TERMS, deps",
    ),
    _mutant(
        "p is taken while its product runs",
        f"{_TILE}output_tile",
        "warpgroup_mma_wait(1, deps=[small])",
        "warpgroup_mma_wait(2, deps=[small])",
    ),
    _mutant(
        "the store before is not waited for", f"{_TILE}store", "        tma.store_wait(BUFFERS - 1)\n", ""
    ),
    _mutant(
        "a wait for stores leaves one more", f"{_TILE}store", "store_wait(BUFFERS - 1)", "store_wait(BUFFERS)"
    ),
    _mutant(
        "all stores take one buffer", f"{_TILE}store", "stages.index(FIRST % BUFFERS)", "stages.index(0)"
    ),
    _mutant(
        "the right half of a store takes the left one's turn",
        f"{_TILE}store",
        "STORE, BUFFERS, FIRST + PARTS)",
        "STORE, BUFFERS, FIRST)",
    ),
    _mutant("no proxy fences", "ptx", r"fence\.proxy\.async.*", ""),
    _mutant(
        "what is summed is not divided by the power of two",
        f"{_TILE}output_tile",
        "        acc *= inverse\n",
        "",
        "persistent, fp16",
    ),
)

_HAND_OVER: Final = (
    _mutant("p is not waited for", f"{_TILE}output_tile", "        wait_for(flag_ptr, 1)\n", ""),
    _mutant("p is never published", f"{_TILE}output_tile", _PUBLISH, ""),
    _mutant(
        "p is published before it is stored",
        f"{_TILE}output_tile",
        _STORE_SMALL + _PUBLISH,
        _PUBLISH + _STORE_SMALL,
    ),
    _mutant("p's release is relaxed", "hopper.handover.publish", '"release"', '"relaxed"'),
    _mutant("p's wait is relaxed", "hopper.handover.wait_for", '"acquire"', '"relaxed"'),
    _mutant(
        "both groups have one flag",
        f"{_TILE}output_tile",
        _FLAG,
        "FLAGS + 2 * m",
        "persistent backward, four resident",
    ),
    _mutant(
        "the mailbox is read too early",
        f"{_RING}take",
        "    mbarrier.wait(filled.index(count & 1), (count >> 1) & 1)\n",
        "",
    ),
    _mutant(
        "the mailbox is filled too early",
        f"{_RING}hand_out",
        "    mbarrier.wait(drained.index(count & 1), ((count >> 1) & 1) ^ 1)\n",
        "",
        "persistent backward, one block of rows",
    ),
    _mutant(
        "the first column has the last tickets",
        "hopper.order.place_of",
        "    m = tile\n",
        "    tile = num_rows * num_columns - 1 - tile\n    m = tile\n",
        "persistent, two resident",
    ),
)

PERSISTENT_MUTANTS: Final = (*_PARITIES, *_ARRIVALS, *_BYTES, *_PRODUCTS, *_HAND_OVER)
