"""The persistent kernels for sm_90, compiled by Triton and run by the interpreter: `python -m` this.

Each case is one call, by the library's own launch, under several schedules, numbers of programs and of those that
are resident. Results are held to fp64 as in `check`, and have equal bits under each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastlora.measuring.inputs import Inputs
from fastlora.routes import hopper
from fastlora_kernels.hopper.blocks import blocks_for
from tests.ptx.driver.cases import Case
from tests.ptx.driver.check import Verdict, hold, inputs_of, mask_of
from tests.ptx.driver.device import Settings, running_on
from tests.ptx.driver.reference import unfused
from tests.ptx.faults import Fault, UnknownInstruction

_PASSES: Final = ("forward", "backward")
SMALL: Final = 128  # columns of a tile that is quick to run


class Schedule(NamedTuple):
    """How a launch runs: its seed (None is all warps in step), its programs, and how many are resident."""

    seed: int | None = None
    programs: int = 3
    resident: int = 3


class HopperCase(NamedTuple):
    """A call, the columns of a tile, and the schedules; every result is computed under each."""

    call: Case
    columns: int = SMALL
    schedules: tuple[Schedule, ...] = (Schedule(), Schedule(1), Schedule(2, 3, 2), Schedule(3, 2, 1))

    def __str__(self) -> str:
        call = self.call
        return f"{call.variant}, {self.columns} columns, {call.shape}"


def _case(
    columns: int = SMALL, schedules: tuple[Schedule, ...] | None = None, **options: object
) -> HopperCase:
    base = Case("sm_90", M=300, K=136, N=264, r=16, passes=("forward",))._replace(**options)
    made = HopperCase(base, columns)
    return made if schedules is None else made._replace(schedules=schedules)


QUICK: Final = _case(schedules=(Schedule(1, 2, 2),), M=130, K=72, N=136)


def all_cases() -> list[HopperCase]:
    """Dtypes, ranks, ragged edges, a tile or many, no bias, small and full tiles, each pass for itself."""
    full = (Schedule(None, 2, 2), Schedule(5, 2, 2))
    many = tuple(Schedule(seed, 5, 1 + seed % 5) for seed in range(8))
    calls = [
        _case(),
        _case(dtype="fp16", values="beyond fp16"),
        _case(adapter="fp32", r=24),
        _case(r=5, K=200, bias=False),
        _case(r=64, K=72),
        _case(r=32, M=3, K=8, N=8),
        _case(r=1, M=70, K=64, N=520),
        _case(schedules=many, M=700, K=264, N=392),
        _case(256, full, M=200, K=264, N=520),
        _case(256, full, M=200, K=264, N=264, r=64),
        _case(256, full, M=130, K=264, N=264, r=32, adapter="fp32"),
    ]
    both = [one._replace(call=one.call._replace(passes=(name,))) for one in calls for name in _PASSES]
    return [QUICK, *both]


def check_hopper(case: HopperCase, change: Callable[[str, str], str] | None = None) -> Verdict:
    """Run a case; `change` may alter its PTX, given the text and the kernel's name."""
    verdict, start = Verdict(), time.perf_counter()
    torch.manual_seed(20261126)
    inputs = inputs_of(case.call)
    first: dict[str, Tensor] = {}
    try:
        for one in case.schedules:
            with running_on(Settings("sm_90", 90, one.seed, one.resident, change), hopper):
                results = _results(case, inputs, one.programs)
            if not first:
                first = results
                hold(case.call, inputs, results, verdict)
            for name, result in results.items():
                if not torch.equal(result.view(torch.uint8), first[name].view(torch.uint8)):
                    verdict.wrong.append(f"{one} gives {name} other bits")
    except Fault as fault:
        verdict.wrong.append(str(fault))
    except UnknownInstruction as unknown:
        verdict.wrong.append(f"unknown instruction: {unknown}")
    verdict.seconds = time.perf_counter() - start
    return verdict


def _results(case: HopperCase, i: Inputs, programs: int) -> dict[str, Tensor]:
    call = case.call
    blocks = blocks_for(call.r, (call.adapter or call.dtype) != call.dtype, c=case.columns)
    o, results = i.call(0.0, None), {}
    if "forward" in call.passes:
        results["y"], results["p"] = hopper.forward(o, blocks, programs)
    if "backward" in call.passes:
        p = unfused(i.to(torch.float64), mask_of(call))["p"].float()
        results |= zip(("dx", "dA", "dB"), hopper.backward(o, i.dy, p, blocks, programs), strict=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.driver.hopper", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", default="", help="cases whose line holds this")
    parser.add_argument("--every", type=int, default=1, help="of the chosen cases, every so many")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the kernels by interpreted ones; unset it")
    bad = 0
    for case in [one for one in all_cases() if options.only in str(one)][:: options.every]:
        verdict = check_hopper(case)
        bad += bool(verdict.wrong)
        judged = "; ".join(verdict.wrong) or "right, with equal bits"
        numbers = f"{verdict.error:.2f} {verdict.element:.2f} {len(case.schedules)} schedules, {verdict.seconds:.0f} s"
        print(f"{case!s:70} {numbers}  {judged}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
