"""Compiles ahead what will be tuned and measured, several processes at a time.

Triton and torch.compile keep what they compiled on disk. One process would compile a few seconds for every
variant, in the middle of the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from bench.cases import Case, Measurement
from bench.counts import synchronize
from bench.layer import build_layer
from bench.measure import on_record
from bench.methods import METHODS
from bench.methods.routes import BY_ROUTE
from bench.process import outcome, run_child
from bench.settings import Setting

_CANDIDATES_SECONDS = 120

_KERNELS = ("fastlora", *(one.name for one in BY_ROUTE))
_COMPILING = (*_KERNELS, "compiled")


def compile_candidates(device: torch.device) -> dict[str, Any]:
    """Compile the tiles that the tuning tries; a correctness step's result."""
    return _share_out("candidates", 8 if device.type == "cuda" else 1, device, _CANDIDATES_SECONDS)


def compile_variants(setting: Setting) -> dict[str, Any]:
    """Compile what will be measured; a correctness step's result: does everything run at all?"""
    return _share_out("variants", setting.compilers, setting.device, setting.seconds["compile"])


def _share_out(what: str, count: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Compile in `count` processes, each its share by a function below."""

    def share(number: int) -> dict[str, Any]:
        return run_child(f"bench.compiling:{what}", [number, count], device, seconds)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(share, range(count)))
    unwell = [part["summary"] for part in found if not part["passed"]]
    ran = sum(part.get("ran", 0) for part in found)
    summary = "; ".join([f"{ran} {what} compiled and run once", *unwell])
    finished = all(part["finished"] for part in found)
    return outcome(not unwell, summary, finished=finished)


def candidates(setting: Setting, number: int, of: int) -> dict[str, Any]:
    """Compile every `of`-th candidate of the tuning, from `number` on."""
    from fastlora.tuning import search  # Triton reads TRITON_INTERPRET when it is imported

    return search.compile_share(setting.device, number, of)


def variants(setting: Setting, number: int, of: int) -> dict[str, Any]:
    """Compile every `of`-th variant of what will be measured, from `number` on."""
    problems: list[str] = []
    ran = 0
    for name, case in variants_of(setting.measurements)[number::of]:
        method = METHODS[name]
        if method.why_absent(setting.device, case.dtype) or case.why_not(method):
            continue
        own: list[str] = []
        with on_record(own, f"{name}, {case}"):
            build_layer(method, case, case.inputs(setting.device)).forward_backward()
            synchronize(setting.device)
            ran += 1
        problems += [] if method.external else own
    return {"passed": not problems, "summary": "; ".join(problems), "ran": ran}


def variants_of(measurements: Iterable[Measurement]) -> list[tuple[str, Case]]:
    """(method, case) pairs that between them need all the code of the measurements.

    torch.compile compiles for each size. Our kernels take sizes as arguments; what of them
    decides on the code is their divisibility by 16, and the class of tiles, for which their magnitude stands.
    """
    found: dict[tuple[object, ...], tuple[str, Case]] = {}
    for case, methods, *_ in measurements:
        for name in (name for name in _COMPILING if name in methods):
            sizes: tuple[object, ...] = case[:3]
            if name in _KERNELS:
                sizes = tuple((size.bit_length(), size % 16 == 0) for size in case[:3])
            found.setdefault((name, *sizes, *case[3:]), (name, case))
    return list(found.values())
