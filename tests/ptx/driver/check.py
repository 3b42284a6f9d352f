"""Runs a case under its schedules and holds every result to fp64."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.errors import budget_of, relative_error, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import fused, fused_dora, hopper
from fastlora.routes.decide import is_aligned, problem_of
from fastlora.routes.plan import Plan, plan_for
from tests.ptx.driver.cases import Case
from tests.ptx.driver.device import Settings, running_on
from tests.ptx.driver.persistent import call_persistent
from tests.ptx.driver.reference import (
    dora_bounds,
    element_bounds,
    philox_mask,
    tf32_product,
    unfused,
    unfused_dora,
)
from tests.ptx.faults import Fault, UnknownInstruction

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MASK_SEED = 12345678901234567


@dataclass
class Verdict:
    """What came of a case.

    Attributes:
        wrong: What is wrong, as phrases; empty if nothing is.
        error: The worst error of a result over its error budget.
        element: The worst error of an element over its bound.
        splits: How many programs share a tile, by what they compute.
        seconds: What it took.
    """

    wrong: list[str] = field(default_factory=list)
    error: float = 0.0
    element: float = 0.0
    splits: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def check(case: Case, change: Callable[[str, str], str] | None = None) -> Verdict:
    """Run a case; `change` may alter its PTX, given the text and the kernel's name."""
    verdict, start = Verdict(), time.perf_counter()
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    torch.manual_seed(20261122)
    inputs = inputs_of(case)
    first: dict[str, Tensor] = {}
    try:
        for seed in case.seeds:
            settings = Settings(case.architecture, case.target, seed, case.resident or None, change)
            module = hopper if case.persistent else fused
            with running_on(settings, module):
                results = _call(case, inputs, verdict)
            if not first:
                first = results
                _hold(case, inputs, results, verdict)
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


def inputs_of(case: Case) -> Inputs:
    """Random operands in their layouts, with NaN wherever none of their elements is."""
    dtype, adapter = DTYPES[case.dtype], DTYPES[case.adapter or case.dtype]
    made = random_inputs(case.M, case.K, case.N, case.r, dtype=dtype, adapter_dtype=adapter, bias=case.bias)
    if case.reads_mask:
        _make_mask_readable(case, made)
    if case.values:
        _move(case, made)
    for name, how in case.layouts:
        setattr(made, name, laid_out(getattr(made, name), how))
    return made


def _make_mask_readable(case: Case, i: Inputs) -> None:
    """p = D where A = 1; or dx = D and dA = D, up to the scale, where A is all ones and q = s dy B = 1.

    M = K = N = r. An element that is dropped then has a bound of zero.
    """
    eye = torch.eye(case.K)
    i.x.fill_(1)
    i.W.zero_()
    i.B.copy_(eye)
    i.dy.copy_(eye)
    i.A.copy_(eye if case.passes == ("forward",) else torch.ones(case.r, case.K))


def _move(case: Case, i: Inputs) -> None:
    """p and q beyond 65504, where the adapters' dtype has such values, or s p alone; or below 2^-14."""
    if case.values == "below fp16":
        i.B.mul_(1e-4)
        i.dy.mul_(1e-3)
    elif case.adapter in ("", "fp16"):
        i.x.fill_(2.0**13 / case.K)
        i.A.fill_(4)
        i.B.mul_(1e-3)
        i.dy.mul_(1e-2)
        i.s = 3.0
    else:
        i.A.mul_(1e6)
        i.B.mul_(1e-7)
        i.dy.mul_(100)


def laid_out(tensor: Tensor, how: str) -> Tensor:
    """The same values (or one of them everywhere) in another memory layout."""
    rows, columns = tensor.shape
    if how == "transposed":
        return tensor.t().contiguous().t()
    if how == "expanded":
        return tensor[0, 0].expand(rows, columns)
    if how == "every other":
        wide = tensor.new_full((rows, 2 * columns), float("nan"))
        wide[:, ::2] = tensor
        return wide[:, ::2]
    if how == "shifted":
        flat = tensor.new_full((rows * columns + 3,), float("nan"))
        flat[3:] = tensor.flatten()
        return flat[3:].view(rows, columns)
    pitch = {"odd rows": columns + 5, "padded rows": (columns + 15) // 16 * 16 + 16}[how]
    wide = tensor.new_full((rows, pitch), float("nan"))
    wide[:, :columns] = tensor
    return wide[:, :columns]


def _call(case: Case, i: Inputs, verdict: Verdict) -> dict[str, Tensor]:
    o = i.call(case.dropout, torch.tensor([MASK_SEED]) if case.dropout else None)
    if case.persistent:
        return call_persistent(case, o, i.dy, _p_of(case, i).float())
    aligned = is_aligned(i.x) and is_aligned(i.W)
    results = {}

    def plan(direction: str, aligned: bool) -> Plan:
        made = plan_for(
            direction,
            case.architecture,
            problem_of(o),
            case.needs if direction == "backward" else EVERYTHING,
            case.tiles[direction == "backward"],
            dropout=case.dropout,
            aligned=aligned,
        )
        if case.shape_class and made.shape_class != case.shape_class:
            verdict.wrong.append(f"the {direction} pass takes {made.shape_class}, not {case.shape_class}")
        verdict.splits |= {name: count for name, count in made.split_k.items() if count > 1}
        return made

    p = _p_of(case, i).float()
    c = scales_of(case).float()
    if "forward" in case.passes:
        made = plan("forward", aligned)
        if case.dora:
            y, results["z"], p = fused_dora.forward(o, c, True, made)
        else:
            y, p = fused.forward(o, made)
        results |= {"y": y, "p": p}
    if "backward" in case.passes:
        made = plan("backward", aligned and is_aligned(i.dy))
        if case.dora:
            gradients = fused_dora.backward(o, i.dy, p, c, case.needs, made)
        else:
            gradients = fused.backward(o, i.dy, p, case.needs, made)
        for name, gradient, need in zip(("dx", "dA", "dB"), gradients, case.needs, strict=True):
            if (gradient is not None) != need:
                verdict.wrong.append(f"{name} is {'missing' if need else 'there'}")
            elif gradient is not None:
                results[name] = gradient
    return results


def scales_of(case: Case) -> Tensor:
    """[N] in fp64, of values that fp32 has: DoRA's c, of both signs."""
    numbers = torch.Generator().manual_seed(case.N)
    return (0.5 + torch.rand(case.N, generator=numbers)).double() * (-1) ** torch.arange(case.N)


def mask_of(case: Case) -> Tensor:
    """[M, K] in fp64: the dropout mask with its scale."""
    if not case.dropout:
        return torch.ones(case.M, case.K, dtype=torch.float64)
    threshold, scale = dropout_constants(case.dropout)
    return philox_mask(MASK_SEED, threshold, case.M, case.K).double() * scale


def _p_of(case: Case, i: Inputs) -> Tensor:
    return unfused(i.to(torch.float64), mask_of(case))["p"]


def _hold(case: Case, i: Inputs, results: dict[str, Tensor], verdict: Verdict) -> None:
    """Each result to its error budget, and each element to its bound."""
    D = mask_of(case)
    product = tf32_product if case.precision == "tf32" else torch.matmul
    if case.dora:
        c = scales_of(case)
        truth, torchs = unfused_dora(i.to(torch.float64), c, D), unfused_dora(i, c, D, product)
        bounds = dora_bounds(i, c, D, case.precision)
    else:
        truth, torchs = unfused(i.to(torch.float64), D), unfused(i, D, product)
        bounds = element_bounds(i, D, case.precision)
    for name, result in results.items():
        if not torch.isfinite(result).all():
            verdict.wrong.append(f"{name} is not finite, or was not written everywhere")
            continue
        budget = budget_of(torchs[name], truth[name], result.dtype) + split_eps(i)
        error = relative_error(result, truth[name]) / budget
        element = ((result.double() - truth[name]).abs() / bounds[name]).max().item()
        if error > 1:
            verdict.wrong.append(f"{name} has {error:.2g} of its error budget")
        if element > 1:
            verdict.wrong.append(f"{name} has an element with {element:.2g} of its bound")
        verdict.error = max(verdict.error, error)
        verdict.element = max(verdict.element, element)
