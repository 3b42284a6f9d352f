"""Calls whose rows choose their operands, run in the interpreter and held to fp64, run by run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING
from fastlora.formula.runs import Run
from fastlora.measuring.errors import budget_of, relative_error, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import fused_runs
from fastlora.routes.run_tables import Adapters
from fastlora.routes.runs_call import RunsCall
from tests.ptx.driver.cases import Case, small_tiles
from tests.ptx.driver.check import DTYPES, MASK_SEED, Verdict, check
from tests.ptx.driver.device import Settings, running_on
from tests.ptx.driver.reference import element_bounds, philox_mask, tf32_product, unfused
from tests.ptx.driver.segment_cases import SegmentCase
from tests.ptx.faults import Fault, UnknownInstruction


def check_case(case: Case | SegmentCase, change: Callable[[str, str], str] | None = None) -> Verdict:
    """What comes of a case of either kind, as `check.check` and `check_segments` say."""
    return check_segments(case, change) if isinstance(case, SegmentCase) else check(case, change)


def check_segments(case: SegmentCase, change: Callable[[str, str], str] | None = None) -> Verdict:
    """Run a case; `change` may alter its PTX, given the text and the kernel's name."""
    verdict, start = Verdict(), time.perf_counter()
    torch.set_float32_matmul_precision("high" if case.kind[2] == "tf32" else "highest")
    torch.manual_seed(20261122)
    each = _inputs_of(case)
    first: dict[str, Tensor] = {}
    try:
        for seed in case.seeds:
            settings = Settings(case.architecture, case.target, seed, case.resident or None, change)
            with running_on(settings, fused_runs):
                results = _call(case, each, verdict)
            if not first:
                first = results
                _hold(case, each, results, verdict)
            for name, result in results.items():
                if not torch.equal(result.view(torch.uint8), first[name].view(torch.uint8)):
                    verdict.wrong.append(f"schedule {seed} gives {name} other bits")
    except Fault as fault:
        verdict.wrong.append(str(fault))
    except CompilationError as error:
        verdict.wrong.append(f"does not compile: {str(error).splitlines()[-1]}")
    except UnknownInstruction as unknown:
        verdict.wrong.append(f"unknown instruction: {unknown}")
    verdict.seconds = time.perf_counter() - start
    return verdict


def _inputs_of(case: SegmentCase) -> list[Inputs]:
    """The operands of each run; runs of the same operands share them, and all adapters share W and b."""
    dtype, adapter = DTYPES[case.kind[0]], DTYPES[case.kind[1]]
    own: dict[int, Inputs] = {}
    each = []
    for rows, number in zip(case.rows, case.of_run, strict=True):
        r = case.ranks[number % len(case.ranks)]
        made = random_inputs(rows, case.K, case.N, r, dtype=dtype, adapter_dtype=adapter, bias=case.bias)
        if case.chosen:
            made.s = 0.5 + number
        alike = own.setdefault(number, made)
        W_b = own[case.of_run[0]] if case.chosen else alike
        each.append(replace(made, A=alike.A, B=alike.B, W=W_b.W, b=W_b.b))
    return each


def _call(case: SegmentCase, each: list[Inputs], verdict: Verdict) -> dict[str, Tensor]:
    o, weights = _operands(case, each), _factors(case)
    dy = torch.cat([one.dy for one in each])
    tiles = small_tiles(case.architecture, case.kind[3])
    results: dict[str, Tensor] = {}
    more = {"architecture": case.architecture, "split_k": case.split}
    launch = fused_runs.launch_of("forward", o, tile=tiles[0], **more)
    verdict.splits |= {name: count for name, count in launch.plan.split_k.items() if count > 1}
    results["y"], p = fused_runs.forward(o, launch)
    launch = fused_runs.launch_of("backward", o, EVERYTHING, dy, tile=tiles[1], **more)
    found = fused_runs.backward(o, dy, p, EVERYTHING, weights, launch)
    verdict.splits |= {name: count for name, count in launch.plan.split_k.items() if count > 1}
    for name, result in zip(("dx", "dA", "dB"), found, strict=True):
        assert result is not None
        results[name] = result
    return results


def _operands(case: SegmentCase, each: list[Inputs]) -> RunsCall:
    by_number = dict(zip(case.of_run, each, strict=True))
    count = len(case.ranks) if case.chosen else len(case.rows) - 1
    own = [by_number[number] for number in range(count)]
    shared = [each[0]] if case.chosen else own
    bounds = [0, *itertools.accumulate(case.rows)]
    runs = tuple(Run(*run) for run in zip(case.of_run, bounds, bounds[1:], strict=False))
    rates = tuple(case.dropout * (number % 2 == 0) for number in range(count))
    adapters = Adapters(case.ranks, tuple(one.s for one in own), rates) if case.chosen else None
    return RunsCall(
        x=torch.cat([one.x for one in each]),
        W=torch.stack([one.W for one in shared]),
        b=torch.stack([one.b for one in shared]) if case.bias else None,
        A=torch.cat([one.A.flatten() for one in own]),
        B=torch.cat([one.B.flatten() for one in own]),
        r=max(case.ranks),
        s=each[0].s,
        runs=runs if case.chosen else torch.tensor(bounds[:-1]),
        adapters=adapters,
        dropout=case.dropout,
        seed=torch.tensor([MASK_SEED]) if case.dropout else None,
    )


def _factors(case: SegmentCase) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(sum(case.rows), 1, generator=generator) if case.weighted else None


def _mask_of(case: SegmentCase, number: int, begin: int, end: int) -> Tensor:
    """[rows, K] in fp64: the dropout mask of a run with its scale."""
    if not case.dropout or (case.chosen and number % 2):
        return torch.ones(end - begin, case.K, dtype=torch.float64)
    threshold, scale = dropout_constants(case.dropout)
    return philox_mask(MASK_SEED, threshold, end, case.K)[begin:].double() * scale


def _hold(case: SegmentCase, each: list[Inputs], results: dict[str, Tensor], verdict: Verdict) -> None:
    """Each result to its error budget, and each element to its bound."""
    truth, torchs, bounds = _expected(case, each)
    for name, result in results.items():
        if not torch.isfinite(result).all():
            verdict.wrong.append(f"{name} is not finite, or was not written everywhere")
            continue
        found = result.double().flatten()
        budget = budget_of(torchs[name], truth[name], result.dtype) + split_eps(each[0])
        error = relative_error(found, truth[name]) / budget
        element = ((found - truth[name]).abs() / bounds[name]).max().item() if found.numel() else 0.0
        if error > 1:
            verdict.wrong.append(f"{name} has {error:.2g} of its error budget")
        if element > 1:
            verdict.wrong.append(f"{name} has an element with {element:.2g} of its bound")
        verdict.error = max(verdict.error, error)
        verdict.element = max(verdict.element, element)


def _expected(case: SegmentCase, each: list[Inputs]) -> tuple[dict[str, Tensor], ...]:
    """(fp64, unfused torch, bounds of elements), each by name, flat as the kernels lay results out."""
    w = _factors(case)
    product = tf32_product if case.kind[2] == "tf32" else torch.matmul
    bounds = [0, *itertools.accumulate(case.rows)]
    count = len(case.ranks) if case.chosen else len(case.rows) - 1
    sums: list[dict[str, dict[int, Tensor]]] = [{"dA": {}, "dB": {}} for _ in range(3)]
    rows: list[dict[str, list[Tensor]]] = [{"y": [], "dx": []} for _ in range(3)]
    for number, i, begin, end in zip(case.of_run, each, bounds, bounds[1:], strict=False):
        if number == count:
            i = _without_adapter(case, i)
        D = _mask_of(case, number, begin, end)
        of_rows = unfused(i.to(torch.float64), D), unfused(i, D, product), element_bounds(i, D, case.kind[2])
        of_sums = of_rows
        if w is not None:
            weighed = replace(i, dy=i.dy.double() * w[begin:end])
            rounded = replace(i, dy=weighed.dy.to(i.dy.dtype))
            of_sums = (
                unfused(weighed.to(torch.float64), D),
                unfused(rounded, D, product),
                element_bounds(weighed, D, case.kind[2]),
            )
        for nth in range(3):
            for name, parts in rows[nth].items():
                parts.append(of_rows[nth][name].double())
            for name, found in sums[nth].items():
                more = of_sums[nth][name].double()
                found[number] = found[number] + more if number in found else more
    made = []
    for nth in range(3):
        for name, found in sums[nth].items():
            rows[nth][name] = [found[number].flatten() for number in range(count)]
        made.append({name: torch.cat(parts).flatten() for name, parts in rows[nth].items()})
    return tuple(made)


def _without_adapter(case: SegmentCase, i: Inputs) -> Inputs:
    """Rows that chose none: no update, and where W is chosen too, no W and no b."""
    i = replace(i, A=torch.zeros_like(i.A), B=torch.zeros_like(i.B))
    return i if case.chosen else replace(i, W=torch.zeros_like(i.W), b=None)
