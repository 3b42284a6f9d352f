"""The same seed gives the same bits on every path, in this process and in another."""

import hashlib
import itertools
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastlora
from tests.training.nets import DEVICE, batch, net

# Dynamo looks at an autograd.Function by instantiating it; Inductor imports what torch.jit deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


def trained(run_as=lambda model: model, **options):
    """A digest of the outputs and parameters of two steps with dropout, all from one seed."""
    torch.manual_seed(7)
    model = net(0.3, **options)
    run = run_as(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    digest = hashlib.sha256()
    for _ in range(2):
        y = run(batch(9, model[0].weight.dtype))
        optimizer.zero_grad()
        y.float().square().mean().backward()
        optimizer.step()
        digest.update(y.detach().float().cpu().numpy().tobytes())
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def under_autocast(model):
    def run(x):
        with torch.autocast(DEVICE, torch.float16):
            return model(x)

    return run


PATHS = {
    "eager": {},
    "16-bit base": {"dtype": torch.float16, "adapter_dtype": torch.float32},
    "autocast": {"run_as": under_autocast},
    "checkpointed": {"run_as": lambda model: lambda x: checkpoint(model, x, use_reentrant=False)},
    "compiled": {"run_as": lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")},
    "inductor": {"run_as": lambda model: torch.compile(model, fullgraph=True)},
}


def paths():
    """(path, backend): Inductor, and with the interpreted kernels what is not eager, wait for .ci/run."""
    for path, backend in itertools.product(PATHS, ("torch", "triton")):
        slow = path == "inductor" or (DEVICE == "cpu" and backend == "triton" and path != "eager")
        yield pytest.param(path, backend, marks=[pytest.mark.exhaustive] if slow else [])


@pytest.mark.parametrize(("path", "backend"), list(paths()))
def test_two_runs_of_a_seed_end_in_the_same_bits(path, backend):
    if (path, backend) == ("inductor", "triton") and DEVICE == "cpu":
        pytest.skip("the operators are opaque to Inductor; one backend is enough without a GPU")
    with fastlora.set_backend(backend):
        assert trained(**PATHS[path]) == trained(**PATHS[path])


def test_checkpointing_and_compiling_end_in_eagers_bits():
    eager = trained()
    assert trained(**PATHS["checkpointed"]) == eager
    assert trained(**PATHS["compiled"]) == eager


@pytest.mark.exhaustive
def test_another_process_ends_in_the_same_bits():
    # As many threads as here: how many share a sum decides in which order it is added up.
    lines = f"import torch; torch.set_num_threads({torch.get_num_threads()})"
    code = f"{lines}; from tests.training import test_determinism as t; print(t.trained())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [trained()]
