"""Compiles what will be measured, several processes at a time: `python -m bench.precompile --device cuda`.

Triton and torch.compile keep what they compiled on disk. One process would compile a few seconds for every
variant, in the middle of the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import fastlora
from bench.cases import Case, Measurement
from bench.methods import COMPILED, FASTLORA, LORAFUSION, METHODS
from bench.phases import forward_backward
from bench.problems import on_record
from bench.process import run_module
from bench.settings import DRY, GPU, Setting

_COMPILING = (FASTLORA.name, COMPILED.name, LORAFUSION.name)


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
                if name == FASTLORA.name:
                    sizes = tuple((size.bit_length(), size % 16 == 0) for size in case[:3])
                found.setdefault((name, *sizes, *case[3:]), (name, case))
    return list(found.values())


def compile_all(setting: Setting) -> dict[str, Any]:
    """Compile in `setting.compilers` processes; a correctness step's result: does everything run at all?"""
    start = time.monotonic()
    count = setting.compilers

    def share(number: int) -> dict[str, Any]:
        arguments = ["--share", str(number), "--of", str(count)]
        return run_module("bench.precompile", arguments, setting.device, setting.compile_seconds)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(share, range(count)))
    unwell = [part["summary"] for part in found if not part["passed"]]
    ran = sum(part.get("ran", 0) for part in found)
    return {
        "passed": not unwell,
        "finished": all(part["finished"] for part in found),
        "summary": "; ".join([f"{ran} variants compiled and run once", *unwell]),
        "seconds": round(time.monotonic() - start, 1),
    }


def compile_share(setting: Setting, number: int, of: int) -> dict[str, Any]:
    """Compile every `of`-th variant, from `number` on."""
    problems: list[str] = []
    ran = 0
    for name, case in variants(setting.measurements)[number::of]:
        method = METHODS[name]
        if method.why_absent(setting.device, case.dtype) or method.why_not(case):
            continue
        own: list[str] = []
        with on_record(own, f"{name}, {case}"):
            ops = case.operands(setting.device)
            forward_backward(method.build(ops, case.dropout), ops)
            if setting.device.type == "cuda":
                torch.cuda.synchronize()  # what went wrong on the GPU shows here, under this variant's name
            ran += 1
        problems += [] if method.external else own
    return {"passed": not problems, "summary": "; ".join(problems), "ran": ran}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile a share, and print what was found as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.precompile", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--share", type=int, default=0, help="begin at this variant (default: %(default)s)")
    parser.add_argument("--of", type=int, default=1, help="and then every that many (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    setting = GPU if options.device == "cuda" else DRY
    with fastlora.set_backend("triton"):
        found = compile_share(setting, options.share, options.of)
    print(json.dumps(found))  # noqa: T201
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
