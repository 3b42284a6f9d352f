"""The kernels of projections that share x, compiled for a GPU and run by the interpreter: `python -m` this.

In bf16, under random schedules, with tiles that are split and that are not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlora.formula import oracle
from fastlora.formula.grouped import Grouped, Projection, bundle
from fastlora.measuring.errors import budget_of, relative_error
from fastlora.routes import group_fused
from fastlora.routes.decide import is_aligned
from fastlora.routes.group_plan import GroupPlan, group_plan
from tests.ptx.driver.cases import small_tiles
from tests.ptx.driver.device import Launcher, Settings

CAPABILITIES = {"sm_80": 80, "sm_90": 90}
# (M, K, columns, ranks): two blocks of rows, a member without an update; two, not aligned; split tiles.
SHAPES = {
    "aligned": (70, 128, (72, 16, 64), (8, 0, 16)),
    "ragged": (50, 101, (67, 20), (5, 40)),
    "split": (50, 584, (40, 536, 16), (16, 4, 8)),
}
SEEDS = (None, 1, 2)


@contextlib.contextmanager
def running_on(settings: Settings) -> Iterator[None]:
    """Inside, `group_fused.forward` and `group_fused.backward` run in the interpreter."""
    names = ("group_forward_kernel", "group_backward_kernel", "on_device")
    kept = {name: getattr(group_fused, name) for name in names}
    for name in names[:2]:
        setattr(group_fused, name, Launcher(kept[name], settings))
    group_fused.on_device = lambda x: contextlib.nullcontext()
    try:
        yield
    finally:
        for name in names:
            setattr(group_fused, name, kept[name])


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


def expected(o: Grouped, dys: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Each y and p, dx, each dA and dB, in a dtype by separate operations."""
    x = o.x.to(dtype).requires_grad_()
    found, ys, factors = {}, [], {}
    for place, one in enumerate(o.members):
        W, b, A, B = (None if t is None else t.to(dtype) for t in (one.base.tensors[0], one.b, one.A, one.B))
        if A is None:
            ys.append(torch.nn.functional.linear(x, W, b))
            continue
        factors |= {f"dA{place}": A.requires_grad_(), f"dB{place}": B.requires_grad_()}
        ys.append(oracle.unfused(x, W, b, A, B, one.s))
        found[f"p{place}"] = (x @ A.t()).detach()
    wanted = {"dx": x, **factors}
    made = torch.autograd.grad(ys, list(wanted.values()), [dy.to(dtype) for dy in dys])
    found |= {f"y{place}": y.detach() for place, y in enumerate(ys)}
    return found | dict(zip(wanted, made, strict=True))


def computed(o: Grouped, dys: Sequence[Tensor], plans: Sequence[GroupPlan]) -> dict[str, Tensor]:
    """The same by the kernels."""
    ys, ps = group_fused.forward(o, plans[0])
    dx, dAs, dBs = group_fused.backward(o, dys, ps, plans[1])
    named = {"y": ys, "p": ps, "dA": dAs, "dB": dBs}
    found = {
        f"{name}{i}": one for name, all_ in named.items() for i, one in enumerate(all_) if one is not None
    }
    return found | {"dx": dx}


def check(architecture: str, shape: str, adapter: torch.dtype) -> list[str]:
    """What is wrong with a shape, under each schedule; empty if nothing is."""
    torch.manual_seed(20261126)
    o = operands(*SHAPES[shape], adapter)
    dys = [torch.randn(o.x.shape[0], one.base.N).to(o.x.dtype) for one in o.members]
    aligned = all(map(is_aligned, (o.x, *dys, *(one.base.tensors[0] for one in o.members))))
    problem, columns = group_fused.problem_of(o)
    plans = [
        group_plan(direction, architecture, problem, columns, aligned, tile)
        for direction, tile in zip(("forward", "backward"), small_tiles(architecture, "half"), strict=True)
    ]
    if shape == "split" and min(plans[0].split_k.values()) == 1:
        return ["no tile is split"]
    torchs, truths = (expected(o, dys, dtype) for dtype in (o.x.dtype, torch.float64))
    first: dict[str, Tensor] = {}
    for seed in SEEDS:
        with running_on(Settings(architecture, CAPABILITIES[architecture], seed)):
            results = computed(o, dys, plans)
        if not first:
            first = results
            wrong = [
                name
                for name, ours in results.items()
                if not relative_error(ours, truths[name]) <= budget_of(torchs[name], truths[name], ours.dtype)
            ]
            if wrong or results.keys() != truths.keys():
                return [f"beyond their budget: {', '.join(wrong)}"]
        other = [name for name, one in results.items() if not torch.equal(one, first[name])]
        if other:
            return [f"schedule {seed} gives other bits of {', '.join(other)}"]
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
