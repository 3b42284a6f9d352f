"""One linear layer by every method: `python -m bench.linear`. Forward, backward, and both.

Each method is checked against fp64, then timed in turn with the others; the bytes that its forward pass saves
for backward are counted beside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from bench.bars import draw_bars
from bench.cache import private_cache_bytes
from bench.cases import Case
from bench.ceilings import measure_ceilings
from bench.effort import effort_on
from bench.launches import profile_case
from bench.level import add_device, finish, fresh_results, level_parser, positive, prepare_torch
from bench.linear_cases import SELDOM, SELDOM_WHY, linear_measurements
from bench.measure import CaseResult, measure_case
from bench.methods import METHODS, UNDROPPED, Method
from bench.methods.lorafusion import CHECKOUT
from bench.problems import on_record
from bench.results import Results
from fastlora.activations import saved_bytes

LEVEL: Final = "linear"
ROUNDS: Final = 60
WHOLE: Final = "forward+backward"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case; the exit status, 1 if a method was wrong or failed."""
    parser = level_parser(LEVEL, __doc__.splitlines()[0], ROUNDS)
    add_device(parser, [name for name in METHODS if name != UNDROPPED.name])
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of timing for each case and phase (default: %(default)s)"
    )
    parser.add_argument("--most-rows", type=positive, help="only cases with so many rows of x and fewer")
    parser.add_argument("--lorafusion", type=Path, metavar="PATH", help="a checkout of LoRAFusion")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.lorafusion is not None:
        os.environ[CHECKOUT] = str(options.lorafusion.resolve())
    device = prepare_torch(options)
    results = fresh_results(LEVEL, arguments, device, options.commit)
    effort = effort_on(device, options.rounds)
    measurements = linear_measurements(device)
    base = measurements[0].case.dtype
    dtypes = dict.fromkeys(one.case.dtype for one in measurements)
    ceilings = {dtype: measure_ceilings(effort, dtype) for dtype in dtypes}
    results.ceilings, *results.other_ceilings = (found._asdict() for found in ceilings.values())
    reasons = {name: METHODS[name].why_absent(device, base) for name in options.methods}
    results.absent = {name: why for name, why in reasons.items() if why is not None}
    present = [METHODS[name] for name in reasons if name not in results.absent]
    cache = results.environment.device["l2_bytes"] or private_cache_bytes()
    for planned in measurements:
        case = planned.case
        if options.most_rows is not None and options.most_rows < case.M:
            continue
        methods = [method for method in present if method.name in planned.methods]
        if SELDOM in options.methods and SELDOM not in planned.methods:
            results.left_out.append({"method": SELDOM, "why": SELDOM_WHY, **case.labels()})
        with on_record(results.problems, f"{LEVEL}, {case}"):
            measurement = planned._replace(seconds=options.seconds)
            add_case(results, measure_case(measurement, effort, methods, ceilings[case.dtype], cache))
        with on_record(results.problems, f"{LEVEL}, {case}, counts"):
            timed = {row.method for row in results.rows if row.labels == case.labels()}
            methods = [method for method in methods if method.name in timed]
            add_saved_bytes(results, case, device, methods)
            if planned.launches:
                results.add_profiles(profile_case(case, device, methods))
        if options.json is not None:
            results.write(options.json)
    return finish(results, options, draw_bars)


def add_case(results: Results, found: CaseResult) -> None:
    """Keep what measuring a case found."""
    results.left_out += found.left_out
    results.checks += found.checks
    results.problems += found.problems
    results.rows += found.rows


def add_saved_bytes(results: Results, case: Case, device: torch.device, methods: Iterable[Method]) -> None:
    """Note in the case's rows of both passes what the forward pass saves for the backward pass."""
    saved = {method.name: layer_saved_bytes(method, case, device) for method in methods}
    results.rows = [
        replace(row, saved_bytes=saved[row.method])
        if row.phase == WHOLE and row.labels == case.labels() and row.method in saved
        else row
        for row in results.rows
    ]


def layer_saved_bytes(method: Method, case: Case, device: torch.device) -> int:
    """Bytes beyond W, b, A and B that the method's forward pass saves; x counts where it is saved."""
    ops = case.operands(device)
    layer = method.build(ops, case.dropout)
    own = [tensor for tensor in (ops.W, ops.b, ops.A, ops.B) if tensor is not None]
    return saved_bytes(lambda: layer.apply(ops.x), own)


if __name__ == "__main__":
    sys.exit(main())
