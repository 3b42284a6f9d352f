"""Runs compared bit for bit: a race shows, NaN is no difference, and time ends them."""

import pytest
import torch

import fastlora
from bench import soak as module
from bench.layer import build_layer
from bench.methods import UNFUSED
from bench.settings import DRY
from bench.soak import NAMES, at_once, poisoned, soak
from tests.bench.rows import CPU

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the dry run's kernels are interpreted"
)


@needs_interpreter
@pytest.mark.parametrize(
    ("how", "runs", "layers", "summary"),
    [
        ("repeat", 2, 1, "2 runs of forward and backward, all bitwise equal"),
        ("streams", 1, 4, "1 runs of 4 layers at once, forward and backward, all bitwise equal"),
    ],
)
def test_the_kernels_give_the_same_bits_over_and_over_and_beside_one_another(how, runs, layers, summary):
    fastlora.set_backend("triton")
    found = soak(DRY._replace(soak_runs=runs), how)
    assert (found["passed"], found["runs"], found["summary"]) == (True, runs, summary)
    assert set(found["different"].values()) == {0}
    assert len(found["different"]) == 4 * layers == 4 * len(found["cases"])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replays_of_a_graph_give_the_bits_of_an_eager_run():
    found = soak(DRY._replace(how=DRY.how._replace(device=torch.device("cuda")), soak_runs=20), "graph")
    assert (found["passed"], found["runs"]) == (True, 20)


def changed(apply_after):
    """A layer whose output goes through `apply_after`."""
    layer = build_layer(UNFUSED, DRY.soak, DRY.soak.inputs(CPU))
    return layer._replace(apply=lambda x: apply_after(layer.apply(x)))


def unchanged(y):
    return y


@pytest.mark.parametrize(
    ("factors", "different"),
    [((1.0, 1.0, 1.001, 1.0), 1), ((float("nan"),) * 4, 0), ((0.0, -0.0, 0.0, 0.0), 1)],
    ids=["race", "NaN", "sign"],
)
def test_a_race_and_a_lost_sign_show_as_a_difference_and_nan_is_none(factors, different):
    left = iter(factors)
    found = at_once([changed(lambda y: y.abs() * next(left))], runs=3, seconds=60)
    assert (found["passed"], found["runs"]) == (different == 0, 3)
    assert found["different"]["y"] == different


def test_a_layer_that_another_one_disturbs_is_named():
    factors = iter([1.0, 1.0, 1.001])
    found = at_once([changed(unchanged), changed(lambda y: y * next(factors))], runs=2, seconds=60)
    assert not found["passed"]
    assert {name for name, count in found["different"].items() if count} == {
        f"{name} of layer 1" for name in NAMES
    }


def test_all_forward_passes_are_queued_before_a_backward_pass():
    order = []

    def watched(number):
        def apply_after(y):
            order.append(f"forward {number}")
            y.register_hook(lambda dy: order.append(f"backward {number}"))
            return y

        return apply_after

    at_once([changed(watched(0)), changed(watched(1))], runs=1, seconds=60)
    assert order[4:] == ["forward 0", "forward 1", "backward 0", "backward 1"]


def test_a_soak_ends_with_its_time_and_without_a_run_it_has_not_passed():
    found = at_once([changed(unchanged)], 1000, -1)
    assert (found["passed"], found["runs"]) == (False, 0)


def test_buffers_are_poisoned_during_a_soak_and_no_longer_also_after_an_error(monkeypatch):
    fresh = []
    monkeypatch.setattr(module, "at_once", lambda *_: fresh.append(torch.empty(3)) or {"passed": True})
    soak(DRY, "repeat")
    assert fresh[0].isnan().all()
    with pytest.raises(RuntimeError), poisoned():
        raise RuntimeError
    assert not torch.are_deterministic_algorithms_enabled()
