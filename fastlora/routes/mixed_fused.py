"""The formula for rows that take different adapters, by the fused kernels: one launch a pass.

The base product is that of a plain call; only what has r columns goes by runs. For that, A and B of the
batch's adapters are copied, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlora.formula.operands import Needs
from fastlora.formula.runs import Run
from fastlora.routes import fused_runs
from fastlora.routes.mixed import Gradients, Mixed
from fastlora.routes.run_tables import Adapters
from fastlora.routes.runs_call import RunsCall


def forward(o: Mixed) -> tuple[Tensor, list[Tensor]]:
    """As `mixed.forward`, but p of all rows in one tensor, as the kernels lay it out."""
    y, p = fused_runs.forward(_call(o))
    return y, [p]


def backward(o: Mixed, dy: Tensor, ps: Sequence[Tensor], needs: Sequence[Needs]) -> Gradients:
    """As `mixed.backward`."""
    call, present = _call(o), o.taken()
    anyone = Needs(*(any(need[nth] for need in needs) for nth in range(3)))
    dx, flat_A, flat_B = fused_runs.backward(call, dy, ps[0], anyone)
    dA: list[Tensor | None] = [None] * len(o.adapters)
    dB: list[Tensor | None] = [None] * len(o.adapters)
    before = 0
    for place, found in present.items():
        (r, K), N = found.A.shape, found.B.shape[0]
        if flat_A is not None and needs[place].dA:
            dA[place] = flat_A[before * K : (before + r) * K].view(r, K)
        if flat_B is not None and needs[place].dB:
            dB[place] = flat_B[before * N : (before + r) * N].view(N, r)
        before += r
    return dx, dA, dB


def kept(o: Mixed) -> Tensor:
    """[M, K] bool, where dropout keeps x: the dx of a call in which W = 0 and q A = 1."""
    K, x = o.x.shape[1], o.x
    ones = [
        None if one is None else one._replace(A=x.new_ones(1, K), B=x.new_ones(1, 1)) for one in o.adapters
    ]
    W = o.base._replace(tensors=(x.new_zeros(1, K),), N=1)
    call = _call(o._replace(base=W, b=None, adapters=[one and one._replace(s=1.0) for one in ones]))
    p = x.new_zeros(x.shape[0], 1, dtype=torch.float32)
    dx, _, _ = fused_runs.backward(call, x.new_ones(x.shape[0], 1), p, Needs(True, False, False))
    assert dx is not None
    return dx.ne(0)


def _call(o: Mixed) -> RunsCall:
    present = o.taken()
    numbers = {place: number for number, place in enumerate(present)}
    adapters = list(present.values())
    (W,) = o.base.tensors
    return RunsCall(
        x=o.x,
        W=W[None],
        b=None if o.b is None else o.b[None],
        A=torch.cat([one.A.reshape(-1) for one in adapters]),
        B=torch.cat([one.B.reshape(-1) for one in adapters]),
        r=max(one.A.shape[0] for one in adapters),
        s=1.0,
        runs=tuple(Run(numbers.get(run.adapter, -1), run.begin, run.end) for run in o.runs),
        adapters=Adapters(
            tuple(one.A.shape[0] for one in adapters),
            tuple(one.s for one in adapters),
            tuple(one.dropout for one in adapters),
        ),
        seed=o.seeds[:1] if o.seeds is not None and any(one.dropout > 0 for one in adapters) else None,
    )
