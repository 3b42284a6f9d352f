"""One linear layer by every method, in pytest-benchmark's groups: `pytest bench --benchmark-only`.

Save and compare with --benchmark-save=NAME and --benchmark-compare. fastlora takes the path that the backend
chooses on its own: torch on a CPU, the kernels on a GPU.
"""

import pytest
import torch

from bench.cases import Case
from bench.check import check
from bench.methods import METHODS
from bench.phases import PHASES

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BASE = torch.bfloat16 if ON_GPU else torch.float32
M, SIZE = (8192, 4096) if ON_GPU else (256, 1024)
CASES = [Case(M, SIZE, SIZE, r, BASE, torch.float32) for r in (16, 64)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"r{case.r}")
def test_linear(benchmark, case, phase, method):
    """Check the method against fp64, then time it."""
    absent = method.why_absent(DEVICE, case.dtype)
    if absent is not None:
        pytest.skip(absent)
    torch.manual_seed(0)
    ops = case.operands(DEVICE)
    failure = check(method, ops).failure
    assert failure is None, failure
    layer = method.build(ops)

    def call():
        PHASES[phase](layer, ops)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.group = f"{phase}, {case}"
    benchmark(call)
