"""The formula for rows that take different adapters, by torch's products.

The base product is one product over all rows; only the thin ones go adapter by adapter. They come first, and
the base product is accumulated onto them (see `cpu`). p is kept for each part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import BaseWeight, Needs, accumulation_dtype
from fastlora.formula.runs import Part, Run
from fastlora.routes.products import gram, grow, shrink, without_gaps

Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]


class Factors(NamedTuple):
    """An adapter's A [r, K], B [N, r], s and dropout."""

    A: Tensor
    B: Tensor
    s: float
    dropout: float = 0.0


class Mixed(NamedTuple):
    """The operands of a mixed call.

    Attributes:
        x: [M, K].
        base: W [N, K].
        b: [N] in x's dtype, or None.
        adapters: Those of the batch; None where the layer has no part in one.
        parts: Every row of x once.
        seeds: [parts] int64, the seeds of the parts' masks; None without dropout. The fused kernels draw all
            masks from the first.
        runs: Every row of x once, in order: what the parts were made of.
    """

    x: Tensor
    base: BaseWeight
    b: Tensor | None
    adapters: Sequence[Factors | None]
    parts: Sequence[Part]
    seeds: Tensor | None = None
    runs: Sequence[Run] = ()

    def taken(self) -> dict[int, Factors]:
        """The adapters that rows take, by their place."""
        places = {run.adapter for run in self.runs if run.begin < run.end}
        return {place: one for place, one in enumerate(self.adapters) if one is not None and place in places}

    def each(self) -> Iterator[tuple[Part, Factors | None, Tensor | None]]:
        """Each part, its adapter if any, and the seed of its mask."""
        for place, part in enumerate(self.parts):
            found = None if part.adapter < 0 else self.adapters[part.adapter]
            yield part, found, None if self.seeds is None else self.seeds[place : place + 1]


def forward(o: Mixed) -> tuple[Tensor, list[Tensor]]:
    """y [M, N] in x's dtype, and p [rows, r] of each part that has an adapter."""
    o = _without_gaps(o)
    x, b = o.x, o.b
    (W,) = o.base.tensors
    y = x.new_empty(x.shape[0], o.base.N)
    ps = []
    for part, found, seed in o.each():
        rows = part.rows
        if found is None:
            y[rows] = 0 if b is None else b
            continue
        A, B, s, dropout = found
        x_d = x[rows]
        if (mask := mask_of(x_d, dropout, seed)) is not None:
            x_d = mask.mul_(x_d)
        p = shrink(x_d, A.t(), dropout_constants(dropout)[1])
        if isinstance(rows, Tensor):
            y[rows] = grow(p, B.t(), x.dtype, s, b)
        else:
            grow(p, B.t(), x.dtype, s, b, out=y[rows])
        ps.append(p)
    return y.addmm_(x, W.t()), ps


def backward(o: Mixed, dy: Tensor, ps: Sequence[Tensor], needs: Sequence[Needs]) -> Gradients:
    """dx [M, K], and dA [r, K] and dB [N, r] of each adapter; None if not needed.

    Args:
        o: The operands of `forward`.
        dy: [M, N] in x's dtype.
        ps: As `forward` returned them.
        needs: For each adapter, which gradients to compute; dx for all or for none.
    """
    o = _without_gaps(o)
    x = o.x
    if x.dtype == torch.bfloat16:
        dy = without_gaps(dy)
    dx = x.new_empty(x.shape) if needs[0].dx else None
    dA = _Sums(len(needs))
    dB = _Sums(len(needs))
    of_part = iter(ps)
    for part, found, seed in o.each():
        rows = part.rows
        if found is None:
            if dx is not None:
                dx[rows] = 0
            continue
        p, need = next(of_part), needs[part.adapter]
        A, B, s, dropout = found
        dy_r = dy[rows]
        if need.dB:
            dB.add(part.adapter, gram(dy_r, p, B.dtype, s))
        if not (need.dx or need.dA):
            continue
        x_r, q = x[rows], shrink(dy_r, B, s)
        mask = mask_of(x_r, dropout, seed)
        kept_scale = dropout_constants(dropout)[1]
        if need.dA:
            x_d = x_r if mask is None else torch.mul(x_r, mask)
            dA.add(part.adapter, gram(q, x_d, A.dtype, kept_scale))
        if dx is None:
            continue
        out = dx[rows] if isinstance(rows, slice) else None
        dx_r = grow(q, A, x.dtype, kept_scale, out=out)
        if mask is not None:
            dx_r.mul_(mask)
        if out is None:
            dx[rows] = dx_r
    return None if dx is None else dx.addmm_(dy, o.base.tensors[0]), dA.rounded(), dB.rounded()


def mask_of(rows: Tensor, dropout: float, seed: Tensor | None) -> Tensor | None:
    """Ones and zeros for a part's rows, the same at every call; None without dropout."""
    return draw_mask(rows, dropout_constants(dropout)[0], seed) if dropout > 0 else None


def _without_gaps(o: Mixed) -> Mixed:
    """The operands as torch multiplies bf16 rightly on a CPU: see `products.without_gaps`."""
    if o.x.dtype != torch.bfloat16:
        return o
    adapters = [
        None if one is None else one._replace(A=without_gaps(one.A), B=without_gaps(one.B))
        for one in o.adapters
    ]
    base = o.base._replace(tensors=tuple(map(without_gaps, o.base.tensors)))
    return o._replace(x=without_gaps(o.x), base=base, adapters=adapters)


class _Sums:
    """A gradient for each adapter, summed over its parts in order and rounded once."""

    def __init__(self, adapters: int) -> None:
        self._found: list[Tensor | None] = [None] * adapters
        self._dtypes: dict[int, torch.dtype] = {}

    def add(self, adapter: int, more: Tensor) -> None:
        so_far = self._found[adapter]
        self._dtypes[adapter] = more.dtype
        wide = accumulation_dtype(more.dtype)
        self._found[adapter] = more if so_far is None else so_far.to(wide).add_(more)

    def rounded(self) -> list[Tensor | None]:
        return [None if one is None else one.to(self._dtypes[a]) for a, one in enumerate(self._found)]
