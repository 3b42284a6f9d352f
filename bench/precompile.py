"""Compiles what will be measured, several processes at a time.

Triton and torch.compile keep what they compiled on disk. One process would compile a few seconds for every
variant, in the middle of the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.cases import Case, Measurement
from bench.counts import synchronize
from bench.layer import build_layer
from bench.measure import on_record
from bench.methods import METHODS
from bench.methods.routes import BY_VENDOR
from bench.process import run_shares
from bench.settings import Setting

# Not the persistent kernels: compiling runs them, and they are not proven yet.
_KERNELS = ("fastlora", BY_VENDOR.name)
_COMPILING = (*_KERNELS, "compiled", "lorafusion")


def variants(measurements: Iterable[Measurement]) -> list[tuple[str, Case]]:
    """(method, case) pairs that between them need all the code of the measurements.

    torch.compile and LoRAFusion compile for each size. Our kernels take sizes as arguments; what of them
    decides on the code is their divisibility by 16, and the class of tiles, for which their magnitude stands.
    """
    found: dict[tuple[object, ...], tuple[str, Case]] = {}
    for case, methods, *_ in measurements:
        for name in _COMPILING:
            if name in methods:
                sizes: tuple[object, ...] = case[:3]
                if name in _KERNELS:
                    sizes = tuple((size.bit_length(), size % 16 == 0) for size in case[:3])
                found.setdefault((name, *sizes, *case[3:]), (name, case))
    return list(found.values())


def compile_all(setting: Setting) -> dict[str, Any]:
    """Compile in `setting.compilers` processes; a correctness step's result: does everything run at all?"""
    limits = (setting.compilers, setting.device, setting.compile_seconds)
    return run_shares("bench.precompile:compile_share", *limits, "variants")


def compile_share(setting: Setting, number: int, of: int) -> dict[str, Any]:
    """Compile every `of`-th variant, from `number` on."""
    problems: list[str] = []
    ran = 0
    for name, case in variants(setting.measurements)[number::of]:
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
