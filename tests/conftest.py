"""The kernels run in Triton's interpreter here, unless a GPU is at hand."""

import os
import sys

import pytest
import torch

# Deterministic algorithms, which the `poisoned` fixture turns on, want it of cuBLAS in older torch.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Triton reads it when a kernel is decorated, so it must be set before the first import of triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Processes beside each other have a core each; with more threads every operator waits for the others'.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


SEED = 20261122


def pytest_collectstart(collector):
    """What a test module draws when it is imported does not depend on which were imported before."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _backend_restored():
    from fastlora import set_backend

    with set_backend("auto"):
        yield


@pytest.fixture(autouse=True)
def _compiled_anew():
    """Forget what a test compiled: Dynamo counts recompilations by code, and tests share the layer's."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def poisoned():
    """Fill every `torch.empty` with NaN, so that an element nobody wrote shows in the result."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
