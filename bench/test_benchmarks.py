"""The same comparisons in pytest-benchmark's groups: `pytest -n 0 bench --benchmark-only`.

Save and compare with --benchmark-save=NAME and --benchmark-compare. fastlora takes the path that the backend
chooses on its own: torch on a CPU, the kernels on a GPU.
"""

from typing import Any

import pytest
import torch

from bench.cases import Case
from bench.check import check
from bench.counts import synchronize
from bench.language import language_task
from bench.layer import PHASES, build_layer, layer_task, phase_works
from bench.methods import IN_NETS, METHODS
from bench.methods.method import Update
from bench.mnist import digits_task
from bench.model import LLAMA
from bench.schedule import EVERY
from bench.step import Trainer
from bench.task import Task
from fastlora.measuring.timing import Work

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BASE = torch.bfloat16 if ON_GPU else torch.float32
M, SIZE = (8192, 4096) if ON_GPU else (256, 1024)
CASES = [Case(M, SIZE, SIZE, r, BASE, torch.float32) for r in (16, 64)]
NET, ROWS, LENGTH = ("1B", 1, 2048) if ON_GPU else ("tiny", 2, 64)

# torch.compile and Transformers warn of what they use themselves.
pytestmark = pytest.mark.filterwarnings("default")


def timed(benchmark: Any, work: Work) -> None:
    """Time the parts of a work."""

    def call() -> None:
        for run in work.parts.values():
            run()
        synchronize(DEVICE)

    benchmark.pedantic(call, setup=work.before, rounds=20, warmup_rounds=3)


def check_or_skip(name: str, task: Task, layer: tuple[int, int]) -> None:
    """Skip a method that does not take the task, fail one that is wrong."""
    method = METHODS[name]
    why_not = method.why_absent(DEVICE, task.dtype) or method.why_not(layer, task.dtype, task.update)
    if why_not is not None:
        pytest.skip(why_not)
    failure = check(method, task).failure
    assert failure is None, failure


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"r{case.r}")
def test_linear(benchmark: Any, case: Case, phase: str, method: str) -> None:
    """Check the method against fp64, then time it."""
    inputs = case.inputs(DEVICE)
    check_or_skip(method, layer_task(case, inputs), (case.K, case.N))
    benchmark.group = f"{phase}, {case}"
    timed(benchmark, phase_works([build_layer(METHODS[method], case, inputs)])[phase])


def llama(layers: int = 0) -> Task:
    """A Llama, whole or with so many of its layers."""
    pytest.importorskip("transformers")
    update = Update(16, 32.0, 0.0, torch.float32)
    return language_task(LLAMA, NET, ROWS, LENGTH, update, DEVICE, BASE, layers)


@pytest.mark.parametrize("method", IN_NETS)
@pytest.mark.parametrize("net", ["mnist", "llama"])
def test_step(benchmark: Any, net: str, method: str) -> None:
    """Check the method against fp64, on few layers of a large net, then time forward, backward and Adam."""
    task, small = (llama(), llama(2)) if net == "llama" else (digits_task(DEVICE), digits_task(DEVICE))
    check_or_skip(method, small, (0, 0))
    tuned = METHODS[method].tune(task.build(), task.names, task.update)
    benchmark.group = f"step, {task.name}"
    timed(benchmark, Trainer(tuned, task).step)
