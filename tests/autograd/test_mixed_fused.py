"""Rows that take different adapters, by the fused kernels: the same as each row alone, gradients included."""

import pytest
import torch

from fastlora import set_backend
from fastlora.autograd.mixed import mixed_lora_linear
from fastlora.formula.cost import Problem
from fastlora.formula.masks import dropout_constants
from fastlora.formula.runs import Run, Runs
from fastlora.measuring.errors import assert_within_budget
from fastlora.routes import mixed_fused
from fastlora.routes.decide_runs import decide_runs
from fastlora.routes.mixed import Factors
from fastlora.routes.run_tables import tables_of
from tests.autograd.test_mixed import BATCHES, K, N, call, inputs, test_each_row_is_computed_as_alone
from tests.cases import quick

CPU = torch.device("cpu")
test_each_row_is_computed_as_alone.__test__ = False


@pytest.fixture(autouse=True)
def by_kernels():
    with set_backend("triton"):
        yield


CASES = [
    (kind, dtype, adapter)
    for kind in BATCHES
    for dtype, adapter in (
        (torch.float32, None),
        (torch.float16, None),
        (torch.float16, torch.float32),
        (torch.float32, torch.float16),
    )
]


@pytest.mark.parametrize("case", quick(CASES, ("gathered", torch.float32, None)), ids=str)
def test_each_row_is_computed_as_alone_by_the_kernels(case, poisoned, monkeypatch):
    kind, dtype, adapter = case
    launched = []
    forward = mixed_fused.forward
    monkeypatch.setattr(mixed_fused, "forward", lambda o: launched.append(o) or forward(o))
    test_each_row_is_computed_as_alone(kind, kind != "one", dtype, adapter, None)
    assert bool(launched) == (kind != "none")


@pytest.mark.exhaustive
def test_each_adapter_drops_at_its_own_rate():
    """With W = 0, A = B = s = 1 and one column, y is the mask over 1 - rate, and dx is too for dy = 1."""
    rates, rows = (0.5, 0.0, 0.25), 200
    ones = torch.ones(1, 1)
    x = torch.ones(3 * rows, 1, requires_grad=True)
    found = [Factors(ones.clone().requires_grad_(), ones, 1.0, rate) for rate in rates]
    y = mixed_lora_linear(x, torch.zeros(1, 1), None, Runs([0, 1, 2]), found)
    dx, dA = torch.autograd.grad(y.sum(), (x, found[0].A))
    assert torch.equal(dx, y)
    assert dA == y[:rows].sum()
    for rate, part in zip(rates, y.detach().split(rows), strict=True):
        kept = part.bool().float().mean()
        assert torch.equal(part.unique(), torch.tensor([0.0, dropout_constants(rate)[1]])[rate == 0 :])
        assert abs(kept - (1 - rate)) <= 5 * (rate * (1 - rate) / rows) ** 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_can_be_differentiated_again_with_the_masks_that_were_drawn(dropout):
    """The second derivative of sum(y * dy) in x and B, by dx's own difference in B."""
    ids = [0, 1, 0, -1, 1]
    x, W, b, factors, dy = inputs(ids)
    x.requires_grad_()
    A, B = factors[0][0], factors[0][1].clone().requires_grad_()

    def first(B):
        torch.manual_seed(5)
        y = call(x, W, b, ids, [(A, B), *factors[1:]], dropout)
        return torch.autograd.grad(y, x, dy, create_graph=True)[0]

    way = torch.randn_like(x)
    (found,) = torch.autograd.grad(first(B), B, way)
    moved = torch.randn_like(B)
    # dx is linear in B.
    with torch.no_grad():
        other = (B + moved).requires_grad_()
    change = ((first(other) - first(B)) * way).sum().detach()
    assert_within_budget("d2", (found * moved).sum(), change, change.double(), extra=1e-5)


def test_tables_cover_every_row_once_and_cut_at_borders():
    runs = (Run(0, 0, 5), Run(-1, 5, 40), Run(1, 40, 64), Run(0, 64, 70))
    found = tables_of(runs, 70, 32, 2, CPU)
    assert found.tiles.tolist() == [[0, 0, 32, 0, 2], [0, 32, 64, 2, 4], [0, 64, 70, 4, 5]]
    assert found.segments.tolist() == [
        [0, 0, 5, 0, 0],
        [2, 5, 32, 0, 5],
        [2, 32, 40, 1, 5],
        [1, 40, 64, 1, 40],
        [0, 64, 70, 2, 64],
    ]
    assert found.runs.tolist() == [[0, 5], [64, 70], [40, 64]]
    assert found.firsts.tolist() == [0, 2, 3]


def test_many_short_runs_are_left_to_torch():
    problem = Problem(4096, K, N, 4, torch.bfloat16, torch.bfloat16)
    few, many = (decide_runs(problem, CPU, "auto", runs=runs, gpu="H100") for runs in (100, 1000))
    assert few.is_fused
    assert many.why == "4096 rows in 1000 runs are too short for a tile of p and q each"
