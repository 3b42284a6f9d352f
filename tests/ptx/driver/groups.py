"""The kernel of projections that share x, compiled for a GPU and run by the interpreter: `python -m` this.

In bf16, under random schedules, with tiles that are split and that are not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from fastlora.formula import oracle
from fastlora.formula.grouped import Grouped, Projection, bundle
from fastlora.measuring.errors import budget_of, relative_error
from fastlora.routes import group_fused
from fastlora.routes.decide import is_aligned
from fastlora.routes.group_plan import group_plan
from tests.ptx.driver.cases import small_tiles
from tests.ptx.driver.device import Launcher, Settings

CAPABILITIES = {"sm_80": 80, "sm_90": 90}
# (M, K, columns, ranks): two blocks of rows, a member without an update; two, not aligned; split tiles.
SHAPES = {
    "aligned": (70, 128, (72, 16, 64), (8, 0, 16)),
    "ragged": (50, 101, (67, 20), (5, 40)),
    "split": (50, 584, (40, 24, 16), (16, 4, 8)),
}
SEEDS = (None, 1, 2)


@contextlib.contextmanager
def running_on(settings: Settings) -> Iterator[None]:
    """Inside, `group_fused.forward` runs in the interpreter."""
    kept = group_fused.group_forward_kernel, group_fused._on_device
    group_fused.group_forward_kernel = Launcher(kept[0], settings)
    group_fused._on_device = lambda x: contextlib.nullcontext()
    try:
        yield
    finally:
        group_fused.group_forward_kernel, group_fused._on_device = kept


def operands(
    M: int, K: int, columns: tuple[int, ...], ranks: tuple[int, ...], adapter: torch.dtype
) -> Grouped:
    """Random operands in bf16."""
    half, members = torch.bfloat16, []
    for place, (N, r) in enumerate(zip(columns, ranks, strict=True)):
        W, b = (torch.randn(N, K) / K**0.5).to(half), torch.randn(N).to(half) if place else None
        if not r:
            members.append(Projection(W, b))
            continue
        A, B = (torch.randn(r, K) / K**0.5).to(adapter), torch.randn(N, r).to(adapter)
        members.append(Projection(W, b, A, B, 0.5 + place))
    return bundle(torch.randn(M, K).to(half), members)


def wrong_in(o: Grouped, results: tuple[list[Tensor], list[Tensor | None]]) -> list[str]:
    """What is beyond the error budget."""
    found = []
    for place, (one, y, p) in enumerate(zip(o.members, *results, strict=True)):
        made = []
        for dtype in (torch.bfloat16, torch.float64):
            x, W = o.x.to(dtype), one.base.tensors[0].to(dtype)
            b, A, B = (None if t is None else t.to(dtype) for t in (one.b, one.A, one.B))
            base = torch.nn.functional.linear(x, W, b)
            made.append((base, None) if A is None else (oracle.unfused(x, W, b, A, B, one.s), x @ A.t()))
        (y_torch, p_torch), (y_truth, p_truth) = made
        for name, ours, torchs, truth in (("y", y, y_torch, y_truth), ("p", p, p_torch, p_truth)):
            if ours is not None and not relative_error(ours, truth) <= budget_of(torchs, truth, ours.dtype):
                found.append(f"{name}{place} is beyond its budget")
    return found


def check(architecture: str, shape: str, adapter: torch.dtype) -> list[str]:
    """What is wrong with a shape, under each schedule; empty if nothing is."""
    torch.manual_seed(20261126)
    o = operands(*SHAPES[shape], adapter)
    aligned = is_aligned(o.x) and all(is_aligned(one.base.tensors[0]) for one in o.members)
    problem, columns = group_fused.problem_of(o)
    tile, _ = small_tiles(architecture, "half")
    plan = group_plan("forward", architecture, problem, columns, aligned, "highest", tile)
    if shape == "split" and (min(plan.split_k.values()) == 1):
        return ["no tile is split"]
    first = None
    for seed in SEEDS:
        with running_on(Settings(architecture, CAPABILITIES[architecture], seed)):
            ys, ps = group_fused.forward(o, plan)
        results = [*ys, *(p for p in ps if p is not None)]
        if first is None:
            first = results
            if found := wrong_in(o, (ys, ps)):
                return found
        if not all(map(torch.equal, results, first)):
            return [f"schedule {seed} gives other bits"]
    return []


def main() -> int:
    """Run the shapes; 1 if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.driver.groups")
    parser.add_argument("architectures", nargs="*")
    failed = 0
    for architecture in parser.parse_args().architectures or list(CAPABILITIES):
        for shape in SHAPES:
            for adapter in (torch.bfloat16, torch.float32):
                found = check(architecture, shape, adapter)
                failed += bool(found)
                kind = str(adapter).removeprefix("torch.")
                sys.stdout.write(f"{architecture} {shape}, {kind} adapters: {'; '.join(found) or 'right'}\n")
                sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
