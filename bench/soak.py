"""One case run over and over: `python -m bench.soak --device cuda`. A race shows as a difference.

Every buffer is filled with NaN before each run: otherwise a program that reads p or q too early would find
the last run's values there, which are right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastlora
from bench.cases import DRY, GPU, Setting
from bench.methods import FASTLORA, Layer
from bench.phases import forward_backward
from tests.testing import Operands


def soak(layer: Layer, ops: Operands, names: Sequence[str], runs: int, seconds: float) -> dict[str, Any]:
    """Compare runs with the first, bit for bit.

    Args:
        layer: What is run, forward and backward.
        ops: The same for all runs.
        names: Of y and of the gradients in the order of the layer's.
        runs: How many at most, the first not counted.
        seconds: No run starts later than this after the first.

    Returns:
        passed, a summary in words, the number of runs, in how many of them each result differed, and seconds.
    """
    first = _bits(layer, ops)
    start = time.monotonic()
    different = dict.fromkeys(names, 0)
    done = 0
    while done < runs and time.monotonic() - start < seconds:
        for name, once, again in zip(names, first, _bits(layer, ops), strict=True):
            different[name] += not torch.equal(once, again)
        done += 1
    passed = done > 0 and not any(different.values())
    found = "all bitwise equal" if passed else f"different: {different}"
    return {
        "passed": passed,
        "summary": f"{done} runs of forward and backward, {found}",
        "runs": done,
        "different": different,
        "seconds": round(time.monotonic() - start, 1),
    }


def _bits(layer: Layer, ops: Operands) -> list[Tensor]:
    """Y and the gradients as bytes: NaN equals itself, 0 does not equal -0."""
    y, gradients = forward_backward(layer, ops)
    return [result.detach().contiguous().view(torch.uint8) for result in (y, *gradients)]


def soak_setting(setting: Setting) -> dict[str, Any]:
    """The soak of a setting, with the kernels."""
    torch.manual_seed(0)
    ops = setting.soak.operands(setting.device)
    names = ["y", "dx", *(f"d{name}" for name in FASTLORA.trained)]
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        with fastlora.set_backend("triton"):
            found = soak(FASTLORA.build(ops), ops, names, setting.soak_runs, setting.soak_seconds)
    finally:
        torch.use_deterministic_algorithms(False)
    return {"case": setting.soak.labels(), **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    device = parser.parse_args(arguments).device
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    found = soak_setting(GPU if device == "cuda" else DRY)
    print(json.dumps(found))  # noqa: T201
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
