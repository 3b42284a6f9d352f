"""What `explain` tells of a call: its passes, in numbers and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastlora.arguments import dtype_name
from fastlora.formula.cost import Cost, Problem
from fastlora.routes.route import Route
from fastlora.tables import as_html

if TYPE_CHECKING:
    from fastlora.routes.plan import Plan


_DORA = (
    "torch sums the norms of W + s B A in a forward pass, which reads W once more, and scales the columns of "
    "y, and of dy before its products, in passes of their own"
)
_FUSED_DORA = (
    "one more launch sums the norms of W + s B A in a forward pass, which reads W once more; one in a "
    "backward pass m's gradient; the kernels scale columns of y where they store it, and of dy where they "
    "read it"
)


@dataclass(frozen=True)
class PassExplanation:
    """One pass.

    Attributes:
        name: "forward" or "backward" (all of dx, dA and dB).
        path: Which code runs, and why.
        plan: Tiles, tasks and variants of its one launch; None on the torch path.
        cost: FLOPs and bytes.
        floor_us: The least time on the GPU, in microseconds; None if its peaks are not known.
        unpacks: Whether a packed W is unpacked beforehand, which on a GPU is one more launch.
    """

    name: str
    path: Route
    plan: Plan | None
    cost: Cost
    floor_us: float | None
    unpacks: bool = False


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`; `str()` of it is a readable text.

    Attributes:
        problem: Shape and dtypes.
        path: Which code the device and dtype take, and why; a pass may still go to torch (see `passes`).
        gpu: The GPU that `floor_us` is for; None if none was named and the device's peaks are not known.
        passes: Forward and backward.
        base: How W is packed, in words; None where it is not.
        packed_bytes: Bytes of a packed W. Each pass reads these, and writes W once where it unpacks
            W beforehand; its cost includes both.
        dora: Whether columns are scaled by DoRA's c, which is no part of the cost.
        persistent: On a GPU, whether the persistent kernels for sm_90 take the call, or why not.
    """

    problem: Problem
    path: Route
    gpu: str | None
    passes: tuple[PassExplanation, ...]
    base: str | None = None
    packed_bytes: int = 0
    dora: bool = False
    persistent: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The explanation in JSON's types."""
        M, K, N, r, dtype, adapter_dtype, _ = self.problem
        return {
            "shape": {"M": M, "K": K, "N": N, "r": r},
            "dtype": dtype_name(dtype),
            "adapter_dtype": dtype_name(adapter_dtype),
            "path": self.path._asdict(),
            "gpu": self.gpu,
            "dora": self.dora,
            "persistent": self.persistent,
            "base": None if self.base is None else {"format": self.base, "bytes": self.packed_bytes},
            "passes": [
                {
                    "name": one.name,
                    "flops": one.cost.flops,
                    "bytes": one.cost.moved,
                    "floor_us": one.floor_us,
                    "path": one.path._asdict(),
                    "launches": 1 + one.unpacks if one.plan or one.path.name == "persistent" else None,
                    **({} if one.plan is None else _plan_fields(one.plan)),
                }
                for one in self.passes
            ],
        }

    def __str__(self) -> str:
        M, K, N, r, dtype, adapter_dtype, _ = self.problem
        lines = [
            f"x [{M}, {K}] {dtype_name(dtype)} -> y [{M}, {N}], rank {r} in {dtype_name(adapter_dtype)}",
            f"path: {self.path.name} ({self.path.why})",
        ]
        if self.base is not None:
            by = "one more launch" if self.path.is_fused else "torch"
            inside = [one.name for one in self.passes if not one.unpacks]
            where = f"inside the {inside[0]} product, else" if inside else "in each pass"
            lines.append(f"W: {self.base}, {self.packed_bytes / 1e6:,.3f} MB, unpacked {where} by {by}")
        if self.persistent is not None:
            lines.append(f"persistent kernels: {self.persistent}")
        if self.dora:
            fused = all(one.path.is_fused for one in self.passes)
            lines.append(f"DoRA: {_FUSED_DORA if fused else _DORA}")
        for one in self.passes:
            lines.append(f"{one.name}: {one.cost.flops / 1e9:,.3f} GFLOP, {one.cost.moved / 1e6:,.3f} MB")
            if one.floor_us is not None:
                lines[-1] += f", at least {one.floor_us:,.1f} us on {self.gpu} by its datasheet"
            if one.plan is not None:
                lines += _launch_lines(one.plan)
            elif one.path != self.path:
                lines.append(f"  {one.path.name}: {one.path.why}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_html(str(self).splitlines())


def _plan_fields(plan: Plan) -> dict[str, object]:
    return {
        "shape_class": plan.shape_class,
        "tile": plan.tile._asdict(),
        "block_r": plan.block_r,
        "tasks": dict(plan.tasks),
        "split_k": dict(plan.split_k),
    }


def _launch_lines(plan: Plan) -> list[str]:
    tile = plan.tile
    columns, step = tile.columns(plan.direction), tile.step(plan.direction)
    shape = f"{tile.block_m} x {columns}, steps of {step}, {plan.block_r} ranks"
    programs = ", ".join(_programs(name, count, plan.split_k[name]) for name, count in plan.tasks.items())
    loads = "TMA" if plan.tma else "pointers"
    return [
        f"  1 launch after a memory set of its workspace; {plan.num_tasks:,} programs: {programs}",
        f"  {plan.shape_class} tiles {shape}, {tile.num_warps} warps, {tile.num_stages} stages, {loads}",
    ]


def _programs(name: str, count: int, split_k: int) -> str:
    return f"{count:,} of {name}" + (f" ({split_k} a tile)" if split_k > 1 else "")
