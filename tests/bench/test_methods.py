"""Every method computes what it stands for, and a wrong one is found out before it is timed."""

from dataclasses import replace

import pytest
import torch

import fastlora
from bench.cases import DRY, Case
from bench.ceilings import Ceilings
from bench.check import check
from bench.launches import device_events, profile_case
from bench.measure import measure_case
from bench.methods import FASTLORA, FROZEN, FULL, METHODS, UNFUSED
from bench.phases import PHASES

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    Case(24, 32, 48, 4, torch.float32, torch.float32),
    Case(37, 30, 17, 20, torch.float16, torch.float32),
    Case(70, 66, 40, 8, torch.float16, torch.float16),
]
CEILINGS = Ceilings(1e12, "float16", 1, 1e12, 1)


def wrong_scale(ops):
    return FASTLORA.build(replace(ops, s=ops.s * 1.01))


def wrong_gradient(ops):
    layer = UNFUSED.build(ops)
    layer.trained[0].register_hook(lambda dA: dA * 1.01)
    return layer


def unfinished(ops):
    raise RuntimeError("out of resources\nand a long explanation")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_output_and_gradients_are_within_the_budget(backend, method, case):
    with fastlora.set_backend(backend):
        found = check(method, case.operands(DEVICE))
    assert found.failure is None
    assert set(found.errors) == {"y", "dx", *(f"d{name}" for name in method.trained)}
    assert all(error > 0 for error in found.errors.values())


@pytest.mark.parametrize(("build", "name"), [(wrong_scale, "y"), (wrong_gradient, "dA")])
def test_a_wrong_method_fails_its_check_by_name(build, name):
    found = check(replace(UNFUSED, build=build), CASES[0].operands(CPU))
    assert found.failure.startswith(f"{name}: error")


def test_methods_share_the_memory_of_their_operands():
    ops = CASES[0].operands(CPU)
    (weight,) = FULL.build(ops).trained
    assert weight.data_ptr() == ops.W.data_ptr()
    A, B = FASTLORA.build(ops).trained
    assert (A.data_ptr(), B.data_ptr()) == (ops.A.data_ptr(), ops.B.data_ptr())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_timed_phase_leaves_no_gradient_behind(method):
    ops = CASES[0].operands(CPU)
    layer = method.build(ops)
    for phase in PHASES.values():
        phase(layer, ops)
    assert [leaf.grad for leaf in (ops.x, *layer.trained)] == [None] * (1 + len(method.trained))


def test_fastlora_is_absent_with_a_reason_where_the_kernels_cannot_run():
    with fastlora.set_backend("triton"):
        assert "not torch.float64" in FASTLORA.why_absent(DEVICE, torch.float64)
        assert FASTLORA.why_absent(DEVICE, torch.float32) is None


def measured(*methods):
    setting = DRY._replace(rounds=2)
    return measure_case(DRY.cases[0], setting, methods, CEILINGS, l2_bytes=0)


def test_every_method_gets_a_row_for_each_phase():
    found = measured(FROZEN, UNFUSED)
    assert [(row.phase, row.method) for row in found.rows] == [
        (phase, method) for phase in PHASES for method in ("frozen", "unfused")
    ]
    assert all(row.q25_us <= row.median_us <= row.q75_us for row in found.rows)
    assert all(len(row.samples_us) == 2 for row in found.rows)
    assert not found.problems


def test_a_wrong_method_is_not_timed_and_the_others_are():
    found = measured(FROZEN, replace(UNFUSED, build=wrong_scale))
    assert {row.method for row in found.rows} == {"frozen"}
    assert [check["failure"] is None for check in found.checks] == [True, False]


def test_a_method_that_raises_is_a_problem_and_the_others_are_timed():
    found = measured(replace(UNFUSED, build=unfinished), FROZEN)
    assert {row.method for row in found.rows} == {"frozen"}
    assert found.problems == [f"{DRY.cases[0]}, checking unfused: RuntimeError: out of resources"]


def test_operators_of_a_call_are_counted():
    x = torch.ones(2, 3)
    assert device_events(lambda: x.add(x).mul(x), CPU) == [("cpu_op", "add"), ("cpu_op", "mul")]


def test_each_phase_of_a_method_has_its_launches_counted():
    found = profile_case(DRY.cases[0], CPU, [FROZEN, UNFUSED])
    counts = {(entry["method"], entry["phase"]): entry["launches"] for entry in found}
    assert counts["frozen", "forward"] < counts["frozen", "forward+backward"]
    assert counts["frozen", "forward"] < counts["unfused", "forward"]
    assert all(len(entry["kernels"]) == entry["launches"] for entry in found)
