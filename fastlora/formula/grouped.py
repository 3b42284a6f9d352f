"""The operands of projections that share x, such as q, k and v: one bundle, as a kernel can take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.formula.operands import BaseWeight, Needs, Operands, as_rows, check_adapter, checked_base


class Projection(NamedTuple):
    """One of the projections as a layer holds it: W [N, K], b [N] or None, A [r, K], B [N, r], s and dropout.

    A and B are None where the layer applies W alone. A packed W is a BaseWeight.
    """

    W: Tensor | BaseWeight
    b: Tensor | None
    A: Tensor | None = None
    B: Tensor | None = None
    s: float = 1.0
    dropout: float = 0.0


class Member(NamedTuple):
    """One of the projections, checked: as `Operands` without the x that all share.

    Attributes:
        base: W [N, K].
        b: [N] in x's dtype, or None.
        A: [r, K] in a dtype that all members share, or None for no update.
        B: [N, r] in A's dtype, or None.
        s: The scaling.
        dropout: Probability that an entry of this member's x_d is dropped.
        r: The rank; 0 without an update.
    """

    base: BaseWeight
    b: Tensor | None
    A: Tensor | None
    B: Tensor | None
    s: float
    dropout: float
    r: int


class Grouped(NamedTuple):
    """The operands of y_i = x W_iᵀ + s_i (x_d A_iᵀ) B_iᵀ + b_i.

    Attributes:
        x: [M, K].
        members: The projections.
        seeds: [members that drop] int64, the seeds of their masks; None without dropout.
    """

    x: Tensor
    members: tuple[Member, ...]
    seeds: Tensor | None = None

    @property
    def ranks(self) -> list[int]:
        """The rank of each member."""
        return [member.r for member in self.members]

    def each_seed(self) -> Iterator[tuple[Member, Tensor | None]]:
        """Each member and the seed of its mask."""
        dropping = 0
        for member in self.members:
            seed = None
            if member.dropout > 0 and self.seeds is not None:
                seed = self.seeds[dropping : dropping + 1]
                dropping += 1
            yield member, seed

    def alone(self) -> list[Operands | None]:
        """The operands of each member alone; None for one without an update."""
        found: list[Operands | None] = []
        for (base, b, A, B, s, dropout, _), seed in self.each_seed():
            given = A is not None and B is not None
            found.append(Operands(self.x, base, b, A, B, s, dropout, seed) if given else None)  # type: ignore[arg-type]
        return found


def bundle(x: Tensor, projections: Sequence[Projection]) -> Grouped:
    """The checked bundle, for x [..., K]; its x is a matrix, and seeds are not drawn yet.

    Raises:
        TypeError: If dtypes do not fit, also if those of the members' A differ.
        ValueError: If shapes or devices do not fit.
    """
    members = []
    adapter_dtype = None
    for W, b, A, B, s, dropout in projections:
        base = _checked_packed(x, W, b) if isinstance(W, BaseWeight) else checked_base(x, W, b)
        if A is None or B is None:
            members.append(Member(base, b, None, None, 1.0, 0.0, 0))
            continue
        check_adapter(x, base, A, B)
        adapter_dtype = adapter_dtype or A.dtype
        if A.dtype != adapter_dtype:
            raise TypeError(f"every A must have one dtype; got {adapter_dtype} and {A.dtype}")
        members.append(Member(base, b, A, B, s, dropout, A.shape[0]))
    return Grouped(as_rows(x), tuple(members))


def _checked_packed(x: Tensor, base: BaseWeight, b: Tensor | None) -> BaseWeight:
    if x.dtype != base.dtype or (b is not None and b.dtype != base.dtype):
        raise TypeError(f"x and b must have the dtype {base.dtype} that W is unpacked to; got {x.dtype}")
    if not x.shape or x.shape[-1] != base.K or (b is not None and b.shape != (base.N,)):
        raise ValueError(f"x must have shape [..., K={base.K}] and b [N={base.N}]; got {list(x.shape)}")
    if x.device != base.tensors[0].device:
        raise ValueError(f"x must be on W's device {base.tensors[0].device}; got {x.device}")
    return base


def with_seeds(o: Grouped) -> Grouped:
    """The bundle with a new seed for every member that drops, from torch's generator of x's device."""
    dropping = sum(member.dropout > 0 for member in o.members)
    if not dropping:
        return o
    return o._replace(seeds=torch.randint(2**62, (dropping,), device=o.x.device))


class GroupNeeds(NamedTuple):
    """Which gradients a backward pass must compute: dx of all, and dA and dB of each member."""

    dx: bool
    dA: tuple[bool, ...]
    dB: tuple[bool, ...]

    def of(self, member: int) -> Needs:
        """Those of one member."""
        return Needs(self.dx, self.dA[member], self.dB[member])
