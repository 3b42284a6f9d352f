"""Runs compared bit for bit: a race shows, NaN is no difference, and time ends them."""

import pytest
import torch

import fastlora
from bench import soak as module
from bench.layer import build_layer
from bench.methods import FASTLORA, UNFUSED
from bench.settings import DRY
from bench.soak import NAMES, at_once, poisoned, repeat, soak

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the dry run's kernels are interpreted"
)
CPU = torch.device("cpu")


@needs_interpreter
def test_the_kernels_give_the_same_bits_over_and_over():
    fastlora.set_backend("triton")
    found = soak(DRY._replace(soak_runs=2), "repeat")
    assert found["passed"]
    assert found["summary"] == "2 runs of forward and backward, all bitwise equal"
    assert found["different"] == {"y": 0, "dx": 0, "dA": 0, "dB": 0}
    assert not torch.are_deterministic_algorithms_enabled()


@needs_interpreter
def test_the_kernels_give_the_same_bits_beside_one_another():
    fastlora.set_backend("triton")
    found = soak(DRY._replace(soak_runs=1), "streams")
    assert found["passed"]
    assert found["runs"] == 1
    assert len(found["different"]) == 4 * len(DRY.streams) == 4 * len(found["cases"])


def test_a_cpu_has_no_graph_and_the_result_says_so():
    found = soak(DRY, "graph")
    assert found["passed"] is None
    assert "CUDA graphs need a GPU" in found["summary"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replays_of_a_graph_give_the_bits_of_an_eager_run():
    found = soak(DRY._replace(how=DRY.how._replace(device=torch.device("cuda")), soak_runs=20), "graph")
    assert (found["passed"], found["runs"]) == (True, 20)


def changed(apply_after, case=DRY.soak):
    """A layer whose output goes through `apply_after`."""
    layer = build_layer(UNFUSED, case, case.inputs(CPU))
    return layer._replace(apply=lambda x: apply_after(layer.apply(x)))


def test_a_race_shows_as_a_difference():
    runs = iter([1.0, 1.0, 1.001, 1.0])
    found = repeat(changed(lambda y: y * next(runs)), runs=3, seconds=60)
    assert not found["passed"]
    assert found["runs"] == 3
    assert found["different"]["y"] == 1


def test_nan_is_no_difference_and_a_lost_sign_is():
    assert repeat(changed(lambda y: y * float("nan")), runs=3, seconds=60)["different"]["y"] == 0
    runs = iter([0.0, -0.0, 0.0, 0.0])
    assert repeat(changed(lambda y: y.abs() * next(runs)), runs=3, seconds=60)["different"]["y"] == 1


def test_a_layer_that_another_one_disturbs_is_named():
    runs = iter([1.0, 1.0, 1.001])
    found = at_once([changed(lambda y: y), changed(lambda y: y * next(runs))], runs=2, seconds=60)
    assert not found["passed"]
    disturbed = {name for name, count in found["different"].items() if count}
    assert disturbed == {f"{name} of layer 1" for name in NAMES}


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
    with fastlora.set_backend("torch"):
        layer = build_layer(FASTLORA, DRY.soak, DRY.soak.inputs(CPU))
        assert (repeat(layer, 1000, -1)["passed"], repeat(layer, 1000, -1)["runs"]) == (False, 0)
        assert at_once([layer], 1000, -1)["passed"] is False


def test_buffers_are_poisoned_during_a_soak(monkeypatch):
    fresh = []
    monkeypatch.setattr(module, "repeat", lambda *_: fresh.append(torch.empty(3)) or {"passed": True})
    soak(DRY, "repeat")
    assert fresh[0].isnan().all()


def test_poison_ends_with_its_block_also_after_an_error():
    with pytest.raises(RuntimeError), poisoned():
        raise RuntimeError
    assert not torch.are_deterministic_algorithms_enabled()
