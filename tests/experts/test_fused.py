"""A mixture whose experts are computed by the fused kernels, in Triton's interpreter without a GPU."""

import copy

import pytest
import torch

from fastlora import set_backend
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes import fused_runs
from tests.experts.mixtures import adapted, inputs_of, tiny
from tests.experts.test_training import step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.exhaustive


def test_a_step_is_that_of_torchs_products(monkeypatch):
    model = adapted(tiny()).to(DEVICE)
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs_of(model).items()}
    launches = []
    for name in ("forward", "backward"):
        run = getattr(fused_runs, name)
        monkeypatch.setattr(fused_runs, name, lambda *args, run=run: launches.append(run) or run(*args))
    with set_backend("triton"):
        ours = step(model, inputs)
    # Two layers of two projections, each both ways.
    assert len(launches) == 8
    with set_backend("torch"):
        torchs, truth = step(model, inputs), step(copy.deepcopy(model).double(), inputs)
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        assert_within_budget(name, ours[name], torchs[name], value)
