"""torch's grouped products, which a GPU takes: the same as run by run. On a CPU they run in fp32 too."""

import pytest
import torch

from fastlora.measuring.errors import assert_within_budget
from fastlora.segments import by_runs, grouped
from fastlora.segments.function import linear_by_runs
from tests.segments import test_runs
from tests.segments.test_runs import CHOICES, by_formula, in_fp64, operands, results


@pytest.fixture
def by_groups(monkeypatch):
    """Grouped products, at sizes that they take."""
    monkeypatch.setattr(grouped, "takes", lambda o: True)
    for size in "KNR":
        monkeypatch.setattr(test_runs, size, 8 * getattr(test_runs, size))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("choice", [name for name in CHOICES if name != "no rows"])
def test_groups_are_the_formula_and_its_gradients(choice, weighted, by_groups, poisoned):
    chosen = CHOICES[choice]
    for options in ({}, {"bias": False}, {"update": False}, {"transposed": True}):
        o = operands(chosen, weighted=weighted, dtype=torch.float32, **options)
        ours, torchs = results(linear_by_runs, o), results(by_formula(chosen), o)
        truth = results(by_formula(chosen), in_fp64(o))
        for name, found in ours.items():
            if truth[name] is not None:
                assert_within_budget(name, found, torchs[name], truth[name])


def test_groups_drop_what_runs_drop(by_groups):
    chosen = CHOICES["ragged"]
    o = operands(chosen, dtype=torch.float32)._replace(dropout=0.4, seed=torch.tensor([5]))
    ours = results(linear_by_runs, o)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "takes", lambda o: False)
        alone, truth = results(linear_by_runs, o), results(linear_by_runs, in_fp64(o))
    for name, found in ours.items():
        assert_within_budget(name, found, alone[name], truth[name])


def test_adapters_wider_than_x_are_rounded_to_it(by_groups):
    chosen = CHOICES["ragged"]
    o = operands(chosen, dtype=torch.bfloat16, adapter=torch.float32)
    ours = results(linear_by_runs, o)
    narrow = o._replace(**{name: getattr(o, name).detach().bfloat16().requires_grad_() for name in "AB"})
    torchs, truth = results(by_formula(chosen), narrow), results(by_formula(chosen), in_fp64(o))
    for name, found in ours.items():
        assert_within_budget(name, found.bfloat16(), torchs[name], truth[name])
    assert ours["dA"].dtype == ours["dB"].dtype == torch.float32


def test_a_cpu_goes_run_by_run(monkeypatch):
    o = operands(CHOICES["ragged"], dtype=torch.bfloat16)
    monkeypatch.setattr(by_runs, "forward", lambda o: pytest.fail("run by run"))
    with pytest.raises(pytest.fail.Exception, match="run by run"):
        linear_by_runs(o)
