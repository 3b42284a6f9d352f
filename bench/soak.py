"""Runs compared bit for bit: `python -m bench.soak repeat --device cuda`. A race shows as a difference.

repeat   one case over and over
graph    one case as a CUDA graph, replayed over and over, against an eager run
streams  several cases on a stream each, at once, against each one alone
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

import fastlora
from bench.bits import Differences, one_run, poisoned, report
from bench.methods import FASTLORA, Layer
from bench.replay import replay
from bench.settings import DRY, GPU, Setting
from bench.streams import at_once
from tests.testing import Operands

NAMES = ("y", "dx", *(f"d{name}" for name in FASTLORA.trained))


def repeat(layer: Layer, ops: Operands, runs: int, seconds: float) -> dict[str, Any]:
    """Compare runs with the first.

    Args:
        layer: What is run, forward and backward.
        ops: The same for all runs.
        runs: How many at most, the first not counted.
        seconds: No run starts later than this after the first.

    Returns:
        A correctness step's result, with the number of runs and in how many of them each result differed.
    """
    differences = Differences(NAMES, one_run(layer, ops))
    start = time.monotonic()
    while differences.runs < runs and time.monotonic() - start < seconds:
        differences.add(one_run(layer, ops))
    counts = differences.counts()
    seconds = time.monotonic() - start
    return report(counts, differences.runs, "runs of forward and backward", seconds)


def soak(how: str, setting: Setting) -> dict[str, Any]:
    """One of the three, with the kernels, on a setting's cases."""
    torch.manual_seed(0)
    cases = setting.streams if how == "streams" else (setting.soak,)
    sets = [case.operands(setting.device) for case in cases]
    limits = (setting.soak_runs, setting.soak_seconds)
    with poisoned(), fastlora.set_backend("triton"):
        layers = [FASTLORA.build(ops) for ops in sets]
        if how == "streams":
            found = at_once(NAMES, layers, sets, *limits)
        elif how == "graph":
            found = replay(NAMES, layers[0], sets[0], *limits)
        else:
            found = repeat(layers[0], sets[0], *limits)
    return {"cases": [case.labels() for case in cases], **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=["repeat", "graph", "streams"])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    found = soak(options.how, GPU if options.device == "cuda" else DRY)
    print(json.dumps(found))  # noqa: T201
    return 1 if found["passed"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
