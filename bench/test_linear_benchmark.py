"""One linear layer by every method, in pytest-benchmark's groups: `pytest bench --benchmark-only -n 0`.

Save and compare with --benchmark-save=NAME and --benchmark-compare. fastlora takes the path that the backend
chooses on its own: torch on a CPU, the kernels on a GPU.
"""

import pytest
import torch

from bench.cases import Case
from bench.check import check
from bench.methods import METHODS, UNDROPPED
from bench.phases import PHASES

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BASE = torch.bfloat16 if ON_GPU else torch.float32
M, SIZE = (8192, 4096) if ON_GPU else (256, 1024)
ROUNDS = 20
CASES = [Case(M, SIZE, SIZE, r, BASE, torch.float32) for r in (16, 64)]

# torch.compile warns of parts of torch that it uses itself.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    "method", [one for one in METHODS.values() if one is not UNDROPPED], ids=lambda method: method.name
)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"r{case.r}")
def test_linear(benchmark, case, phase, method):
    """Check the method against fp64, then time it."""
    why_not = method.why_absent(DEVICE, case.dtype) or method.why_not(case)
    if why_not is not None:
        pytest.skip(why_not)
    torch.manual_seed(0)
    ops = case.operands(DEVICE)
    failure = check(method, ops).failure
    assert failure is None, failure
    layer = method.build(ops)

    def prepared():
        return (PHASES[phase].prepare(layer, ops),), {}

    def call(state):
        PHASES[phase].timed(layer, ops, state)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.group = f"{phase}, {case}"
    benchmark.pedantic(call, setup=prepared, rounds=ROUNDS, warmup_rounds=3)
