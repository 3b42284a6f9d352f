"""Whole nets' training steps, in pytest-benchmark's groups: `pytest bench --benchmark-only -n 0`."""

import pytest
import torch

from bench.nets import TUNERS, Update
from bench.nets.check import check_tuner
from bench.nets.digits import digits_task
from bench.nets.llama import Text, llama_task
from bench.nets.trainer import Trainer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BASE = torch.bfloat16 if ON_GPU else torch.float32
SIZE, TEXT = ("1B", Text(1, 2048)) if ON_GPU else ("tiny", Text(2, 64))
LAYERS = 2
ROUNDS = 20


def llama(layers=None):
    """A Llama, whole or with so many of its layers."""
    update = Update(r=16, alpha=32.0, dropout=0.0, adapter_dtype=torch.float32)
    return llama_task(SIZE, TEXT, update, DEVICE, BASE, layers)


# (the net that is timed, the net that is checked)
TASKS = {
    "mnist": lambda: (digits_task(DEVICE), digits_task(DEVICE)),
    "llama": lambda: (llama(), llama(LAYERS)),
}


# Transformers renames things from version to version, and warns where PEFT uses the old names.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
@pytest.mark.parametrize("net", TASKS)
def test_step(benchmark, net, tuner):
    """Check the tuner against fp64, then time forward, backward and Adam."""
    if net == "llama":
        pytest.importorskip("transformers")
    task, checked = TASKS[net]()
    why_absent = tuner.why_absent(task.dtype, task.update)
    if why_absent is not None:
        pytest.skip(why_absent)
    failure = check_tuner(tuner, checked).failure
    assert failure is None, failure
    trainer = Trainer(tuner.tune(task.build(), task.names, task.update), task)

    def step():
        trainer.step()
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.group = f"step, {task.name}"
    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=3)
