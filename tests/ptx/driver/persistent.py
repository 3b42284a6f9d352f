"""The persistent kernels for sm_90 among the cases: what runs, and the call of one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from torch import Tensor

from fastlora.formula.operands import Operands
from fastlora.routes import hopper
from fastlora_kernels.hopper.blocks import blocks_for
from tests.ptx.driver.cases import Case

FULL: Final = 256
SMALL: Final = 128
# Two blocks of rows, two columns of small tiles, ragged edges, and more steps than the ring has slots.
BASE: Final = Case("sm_90", M=130, K=200, N=136, r=16, persistent=SMALL)


def quick_case() -> Case:
    """The one that pytest runs."""
    return BASE._replace(K=72, passes=("forward",), seeds=(1,), programs=2)


def persistent_cases() -> Iterator[Case]:
    """Dtypes, ranks, no bias, one tile and many, schedules and residencies; each pass apart."""
    one = (None, 1)
    calls = [
        BASE._replace(seeds=one),
        BASE._replace(seeds=one, dtype="fp16", values="beyond fp16"),
        BASE._replace(seeds=one, dtype="fp16", K=136),
        BASE._replace(seeds=one, adapter="fp32", r=12),
        BASE._replace(seeds=one, adapter="fp32", r=32),
        BASE._replace(seeds=one, r=5, bias=False),
        BASE._replace(seeds=one, r=64, K=136),
        BASE._replace(seeds=one, r=32, M=3, K=8, N=8, programs=1),
        BASE._replace(seeds=one, r=1, M=70, N=520),
        BASE._replace(seeds=one, M=64, K=520, N=520, programs=1),
        BASE._replace(seeds=one, layouts=(("x", "padded rows"), ("W", "padded rows"), ("dy", "padded rows"))),
        *(BASE._replace(seeds=(2, 3), resident=many, programs=3, M=300) for many in (1, 2, 3)),
        BASE._replace(seeds=(None, 4), programs=5, M=400, K=264, N=264),
        *(BASE._replace(persistent=FULL, seeds=(5,), programs=2, K=264, N=264, r=r) for r in (16, 64)),
        BASE._replace(persistent=FULL, seeds=(5,), programs=2, K=264, N=264, r=16, adapter="fp32"),
    ]
    yield quick_case()
    for call, name in itertools.product(calls, ("forward", "backward")):
        yield call._replace(passes=(name,))


def call_persistent(case: Case, o: Operands, dy: Tensor, p: Tensor) -> dict[str, Tensor]:
    """The results of the case's passes by name; p is what its backward pass is given."""
    wide = o.A.dtype != o.x.dtype
    results: dict[str, Tensor] = {}
    if "forward" in case.passes:
        blocks = blocks_for(case.r, wide, c=case.persistent)
        results["y"], results["p"] = hopper.forward(o, blocks, case.programs)
    if "backward" in case.passes:
        # Smaller tiles would leave no room for p and q in the ring. Several bands of rows, but of full tiles.
        blocks = blocks_for(case.r, wide)
        if case.persistent == SMALL:
            blocks = blocks._replace(group=1 if case.M < 300 else 2)
        found = hopper.backward_of_all(o, dy, p, blocks, case.programs)
        results |= dict(zip(("dx", "dA", "dB"), found, strict=True))
    return results
