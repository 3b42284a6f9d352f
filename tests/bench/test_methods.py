"""Every method computes what it stands for, and a wrong one is found out before it is timed."""

import itertools
from dataclasses import replace

import pytest
import torch

import fastlora
from bench.cases import Case, Measurement
from bench.ceilings import Ceilings
from bench.check import check
from bench.dropout_mask import read_mask, seeded_run
from bench.launches import device_events, profile_case
from bench.measure import measure_case
from bench.methods import (
    ADDMM,
    FASTLORA,
    FROZEN,
    LORAFUSION,
    METHODS,
    PARAMETRIZED,
    UNDROPPED,
    UNFUSED,
)
from bench.methods.lorafusion import CHECKOUT
from bench.phases import PHASES
from bench.settings import DRY

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    Case(24, 32, 48, 4, torch.float32, torch.float32),
    Case(37, 30, 17, 20, torch.float16, torch.float32),
    Case(70, 66, 40, 8, torch.float16, torch.float16, bias=True),
    Case(40, 66, 50, 3, torch.float32, torch.float32, dropout=0.25),
    Case(33, 64, 40, 16, torch.float16, torch.float32, dropout=0.1, bias=True),
]
CEILINGS = Ceilings(1e12, "float16", 1, 1e12, 1)


def wrong_scale(ops, dropout=0.0):
    return FASTLORA.build(replace(ops, s=ops.s * 1.01))


def wrong_gradient(ops, dropout=0.0):
    layer = UNFUSED.build(ops)
    layer.trained[0].register_hook(lambda dA: dA * 1.01)
    return layer


def two_masks(ops, dropout=0.0):
    """A layer whose dA belongs to another mask than its y and dx."""
    layer = UNFUSED.build(ops, dropout)

    def other(dA):
        hooked.remove()
        with torch.enable_grad():
            return torch.autograd.grad(layer.apply(ops.x), layer.trained[0], ops.dy)[0]

    hooked = layer.trained[0].register_hook(other)
    return layer


def unfinished(ops, dropout=0.0):
    raise RuntimeError("out of resources\nand a long explanation")


def present(case):
    """The methods that can run here, and take the case; torch.compile has a test of its own."""
    return [
        method
        for method in METHODS.values()
        if method.name != "compiled"
        and method.why_absent(DEVICE, case.dtype) is None
        and method.why_not(case) is None
    ]


def checked():
    """(backend, method, case): a backend is of no matter to the others, and the interpreter takes long."""
    for case, method in itertools.product(CASES, METHODS.values()):
        if method not in present(case):
            continue
        ours = method.name.startswith("fastlora")
        for backend in ("torch", "triton") if ours else ("torch",):
            slow = backend == "triton" and (method.name, case) != ("fastlora", CASES[-1])
            marks = [pytest.mark.exhaustive] if slow else []
            yield pytest.param(backend, method, case, id=f"{method.name}, {case}, {backend}", marks=marks)


@pytest.mark.parametrize(("backend", "method", "case"), list(checked()))
def test_output_and_gradients_are_within_the_budget(backend, method, case):
    with fastlora.set_backend(backend):
        found = check(method, case.operands(DEVICE), case.dropout)
    assert found.failure is None
    assert set(found.errors) == {"y", "dx", *(f"d{name}" for name in method.trained)}
    assert all(error > 0 for error in found.errors.values())


def test_cases_are_taken_by_those_who_can():
    plain, dropped = CASES[0], CASES[3]
    assert {method.name for method in present(plain)} - {"peft", "loralib"} == {
        "frozen", "full", "unfused", "addmm", "parametrized", "fastlora", "fastlora-p0"
    }  # fmt: skip
    assert "no dropout" in ADDMM.why_not(dropped)
    assert "nothing to drop" in PARAMETRIZED.why_not(dropped)
    assert "another dtype" in PARAMETRIZED.why_not(CASES[1])


def test_lorafusion_is_absent_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.delenv(CHECKOUT, raising=False)
    gpu = torch.device("cuda")
    assert LORAFUSION.why_absent(gpu, torch.bfloat16) == "--lorafusion PATH was not given"
    monkeypatch.setenv(CHECKOUT, str(tmp_path))
    assert LORAFUSION.why_absent(CPU, torch.bfloat16) == "its kernels need a GPU"
    assert "holds no lorafusion/ops/lora_v1.py" in LORAFUSION.why_absent(gpu, torch.bfloat16)


def test_lorafusion_is_left_out_of_what_it_cannot_take():
    case = Case(70, 256, 512, 16, torch.bfloat16, torch.bfloat16, dropout=0.1)
    assert LORAFUSION.why_not(case) is None
    for change in ({"dropout": 0.0}, {"adapter_dtype": torch.float32}, {"r": 8}, {"r": 24}, {"K": 300}):
        assert LORAFUSION.why_not(case._replace(**change))


@pytest.mark.parametrize("method", [UNFUSED, FASTLORA], ids=lambda method: method.name)
def test_the_mask_read_back_is_the_one_that_was_drawn(method):
    ops, rate = CASES[3].operands(CPU), 0.25
    D = read_mask(method, ops, rate)
    assert set(D.unique().tolist()) == {0.0, 1 / (1 - rate)}
    y, _ = seeded_run(method.build(ops, rate), ops)
    x, W, A, B = (tensor.detach().double() for tensor in (ops.x, ops.W, ops.A, ops.B))
    truth = x @ W.t() + ops.s * (x * D) @ A.t() @ B.t()
    torch.testing.assert_close(y.detach().double(), truth, rtol=1e-4, atol=1e-4)


def test_dropout_at_another_rate_fails_the_check():
    undropped = replace(UNFUSED, build=lambda ops, dropout: UNFUSED.build(ops, 0.1))
    found = check(undropped, Case(64, 64, 32, 4, torch.float32, torch.float32).operands(CPU), 0.5)
    assert "of the entries, not 0.5" in found.failure


def test_gradients_of_another_mask_fail_the_check():
    found = check(replace(UNFUSED, build=two_masks), CASES[3].operands(CPU), 0.25)
    assert found.failure.startswith("dA: error")


def test_a_method_beside_dropout_is_held_to_the_formula_without():
    ops = CASES[3].operands(CPU)
    assert check(UNDROPPED, ops, 0.25).failure is None
    assert check(replace(FASTLORA, build=UNDROPPED.build), ops, 0.25).failure.startswith("dropout: 0.0000")


@pytest.mark.parametrize(("build", "name"), [(wrong_scale, "y"), (wrong_gradient, "dA")])
def test_a_wrong_method_fails_its_check_by_name(build, name):
    found = check(replace(UNFUSED, build=build), CASES[0].operands(CPU))
    assert found.failure.startswith(f"{name}: error")


def test_methods_share_the_memory_of_their_operands():
    ops = CASES[0].operands(CPU)
    for method in present(CASES[0]):
        owned = method.build(ops).trained
        assert [t.data_ptr() for t in owned] == [getattr(ops, name).data_ptr() for name in method.trained]


@pytest.mark.parametrize("method", present(CASES[0]), ids=lambda method: method.name)
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


@pytest.mark.parametrize("method", present(CASES[0]), ids=lambda method: method.name)
def test_a_backward_pass_alone_gives_the_gradients_of_the_whole_step(method):
    ops = CASES[0].operands(CPU)
    layer = method.build(ops)
    phase = PHASES["backward"]
    _, alone = phase.timed(layer, ops, phase.prepare(layer, ops))
    _, whole = PHASES["forward+backward"](layer, ops)
    assert all(torch.equal(one, other) for one, other in zip(alone, whole, strict=True))


def measured(*methods, case=DRY.cases[0]):
    setting = DRY._replace(rounds=2)
    measurement = Measurement(case, tuple(method.name for method in methods), ("dry-run",))
    return measure_case(measurement, setting, methods, CEILINGS, l2_bytes=0)


def test_every_method_gets_a_row_for_each_phase():
    found = measured(FROZEN, UNFUSED)
    assert [(row.phase, row.method) for row in found.rows] == [
        (phase, method) for phase in PHASES for method in ("frozen", "unfused")
    ]
    assert all(row.q25_us <= row.median_us <= row.q75_us for row in found.rows)
    assert all(len(row.samples_us) == 2 for row in found.rows)
    assert not found.problems
    assert not found.left_out


def test_a_wrong_method_is_not_timed_and_the_others_are():
    found = measured(FROZEN, replace(UNFUSED, build=wrong_scale))
    assert {row.method for row in found.rows} == {"frozen"}
    assert [check["failure"] is None for check in found.checks] == [True, False]


def test_a_method_that_raises_is_a_problem_and_the_others_are_timed():
    found = measured(replace(UNFUSED, build=unfinished), FROZEN)
    assert {row.method for row in found.rows} == {"frozen"}
    assert found.problems == [f"{DRY.cases[0]}, checking unfused: RuntimeError: out of resources"]


def test_graphs_are_captured_for_each_phase_and_a_backward_pass_behind_its_forward(monkeypatch):
    captures = []

    def captured(*calls):
        captures.append(len(calls))
        return calls

    monkeypatch.setattr("bench.measure.captured_in_turn", captured)
    measurement = Measurement(CASES[0], ("frozen", "unfused"), ("eager", "graph"))
    found = measure_case(measurement, DRY, [FROZEN, UNFUSED], CEILINGS, l2_bytes=0)
    assert captures == [1, 1, 2, 2, 1, 1]
    assert [(row.mode, row.method) for row in found.rows] == [
        (mode, name) for _ in PHASES for mode in ("eager", "graph") for name in ("frozen", "unfused")
    ]


def test_what_cannot_be_captured_has_eager_rows_alone(monkeypatch):
    def captured(*calls):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("bench.measure.captured_in_turn", captured)
    measurement = Measurement(CASES[0], ("frozen", "unfused"), ("eager", "graph"))
    methods = [FROZEN, replace(UNFUSED, external=True)]
    found = measure_case(measurement, DRY, methods, CEILINGS, l2_bytes=0)
    assert {row.mode for row in found.rows} == {"eager"}
    assert [problem.split(", ")[-1].split(":")[0] for problem in found.problems] == ["capturing frozen"] * 3
    assert [entry["method"] for entry in found.left_out] == ["unfused"] * 3


def test_another_librarys_failure_leaves_it_out_and_is_no_problem():
    broken = replace(UNFUSED, build=unfinished, external=True)
    wrong = replace(UNFUSED, name="wrong", build=wrong_scale, external=True)
    found = measured(broken, wrong, FROZEN)
    assert {row.method for row in found.rows} == {"frozen"}
    assert [entry["why"].split(":")[0] for entry in found.left_out] == ["checking unfused", "wrong"]
    assert not found.problems
    assert [check["method"] for check in found.checks] == ["frozen"]


def test_a_method_that_does_not_take_a_case_is_left_out_with_the_reason():
    found = measured(ADDMM, FROZEN, case=CASES[3])
    (entry,) = found.left_out
    assert entry == {"method": "addmm", "why": ADDMM.why_not(CASES[3]), **CASES[3].labels()}
    assert {row.dropout for row in found.rows} == {0.25}


def test_operators_of_a_call_are_counted():
    x = torch.ones(2, 3)
    found = device_events(lambda: x.add(x).mul(x), CPU, before=x.clone)
    assert found == [("cpu_op", "add"), ("cpu_op", "mul")]


def test_each_phase_of_a_method_has_its_launches_counted():
    found = profile_case(DRY.cases[0], CPU, [FROZEN, UNFUSED])
    counts = {(entry["method"], entry["phase"]): entry["launches"] for entry in found}
    assert counts["frozen", "forward"] < counts["frozen", "forward+backward"]
    assert counts["frozen", "forward"] < counts["unfused", "forward"]
    assert counts["unfused", "backward"] < counts["unfused", "forward+backward"]
    assert all(len(entry["kernels"]) == entry["launches"] for entry in found)
