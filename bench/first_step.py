"""The first two steps of one method in a process of its own: `python -m bench.first_step METHOD`.

Prints their seconds as one line of JSON. Imports, operands and the layer are made before the clock starts, so
what the first step has beyond the second is compilation and the loading of code.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

import torch

from bench.cases import Case
from bench.methods import METHODS
from bench.phases import forward_backward

CASES: Final = {
    "cpu": Case(128, 1024, 1024, 16, torch.float32, torch.float32),
    "cuda": Case(2048, 4096, 4096, 16, torch.bfloat16, torch.float32),
}

STEPS: Final = ("first step", "second step")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time forward and backward twice."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_step", description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--device", choices=CASES, required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ops = CASES[options.device].operands(torch.device(options.device))
    layer = METHODS[options.method].build(ops)
    seconds = {}
    for step in STEPS:
        start = time.perf_counter()
        forward_backward(layer, ops)
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds[step] = time.perf_counter() - start
    print(json.dumps(seconds))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
