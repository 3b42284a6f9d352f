"""Every method computes what it stands for, on a layer and in a net, and a wrong one is found out."""

import itertools
from dataclasses import replace

import pytest
import torch

import fastlora
from bench.cases import Case
from bench.check import SEED, check, read_mask
from bench.layer import PHASES, build_layer, layer_saved_bytes, layer_task, phase_works
from bench.methods import (
    ADDMM,
    BY_ROUTE,
    FASTLORA,
    FROZEN,
    IN_NETS,
    METHODS,
    PARAMETRIZED,
    PEFT,
    UNDROPPED,
    UNFUSED,
)
from fastlora.formats.registry import format_of
from fastlora.formula.masks import dropout_constants
from fastlora.seeding import seed_all
from tests.bench.rows import CPU, small_task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    Case(24, 32, 48, 4, torch.float32, torch.float32),
    Case(37, 30, 17, 20, torch.float16, torch.float32),
    Case(70, 66, 40, 8, torch.float16, torch.float16, bias=True),
    Case(40, 66, 50, 3, torch.float32, torch.float32, dropout=0.3),
    Case(33, 64, 40, 16, torch.float16, torch.float32, dropout=0.1, bias=True),
]

# Of PEFT and of what it imports, not of ours.
pytestmark = pytest.mark.filterwarnings("default")


def present(case):
    """Names of those that can run here and take the case; torch.compile has a test of its own."""
    return [
        name
        for name, method in METHODS.items()
        if name != "compiled" and not method.why_absent(DEVICE, case.dtype) and not case.why_not(method)
    ]


def layer_check(method, case):
    return check(method, layer_task(case, case.inputs(DEVICE)))


def checked():
    """(backend, method, case): a backend is of no matter to the others, and the interpreter takes long."""
    for case, name in itertools.product(CASES, METHODS):
        for backend in ("torch", "triton") if name.startswith("fastlora") else ("torch",):
            with fastlora.set_backend(backend):
                here = name in present(case)
            if here:
                quick = name in ("fastlora", *(one.name for one in BY_ROUTE)) and case == CASES[-1]
                slow = backend == "triton" and not quick
                marks = [pytest.mark.exhaustive] if slow else []
                yield pytest.param(backend, name, case, id=f"{name}, {case}, {backend}", marks=marks)


def assert_right(found, *names):
    assert found.failure is None
    assert set(found.errors) == {*names, *(f"d{letter}" for letter in METHODS[found.method].trains)}
    assert all(error > 0 for error in found.errors.values())


@pytest.mark.parametrize(("backend", "name", "case"), list(checked()))
def test_output_and_gradients_of_a_layer_are_within_the_budget(backend, name, case):
    with fastlora.set_backend(backend):
        assert_right(layer_check(METHODS[name], case), "y", "dx")


def tunable(name):
    task = small_task()
    if METHODS[name].why_absent(CPU, task.dtype) is not None:
        pytest.skip("not installed")
    return METHODS[name], task


@pytest.mark.parametrize("name", IN_NETS)
def test_output_and_gradients_of_a_net_are_within_the_budget(name):
    assert_right(check(*tunable(name)), "y")


@pytest.mark.parametrize("mode", ["eager", "checkpoint"])
def test_a_llama_is_tuned_in_every_layer_but_its_head(mode):
    pytest.importorskip("transformers")
    from bench.language import language_task
    from bench.model import LLAMA

    task = language_task(LLAMA, "tiny", 1, 8, small_task().update, CPU, torch.float32)
    assert len(task.names) == 2 * 7
    assert "lm_head" not in task.names
    assert check(FASTLORA, task, mode).failure is None


def wrong_scale(model, names, update):
    return UNFUSED.tune(model, names, update._replace(alpha=1.01 * update.alpha))


def wrong_gradient(model, names, update):
    tuned = UNFUSED.tune(model, names, update)
    next(iter(tuned.trained.values())).register_hook(lambda dA: dA * 1.01)
    return tuned


@pytest.mark.parametrize(
    ("tune", "case", "failure"),
    [
        (wrong_scale, CASES[0], "y: error"),
        (wrong_gradient, CASES[0], "dA: error"),
        (wrong_gradient, CASES[3], "dA: error"),
        (lambda *given: UNFUSED.tune(*given[:2], given[2]._replace(dropout=0.1)), CASES[3], "dropout: 0."),
        (UNDROPPED.tune, CASES[3], "dropout: 0.0000 of the entries, not 0.3"),
    ],
    ids=["scale", "gradient", "gradient under dropout", "rate", "undropped"],
)
def test_a_wrong_method_fails_its_check_by_name(tune, case, failure):
    wrong = replace(UNFUSED, tune=tune)
    assert layer_check(wrong, case).failure.startswith(failure)
    if tune is wrong_scale:
        assert check(wrong, small_task()).failure.startswith(failure)


@pytest.mark.parametrize("method", [UNFUSED, FASTLORA], ids=lambda method: method.name)
def test_the_mask_read_back_is_the_one_that_was_drawn(method):
    case = CASES[3]
    inputs, rate = case.inputs(CPU), case.dropout
    task = layer_task(case, inputs)
    D = read_mask(method, task)
    scale = dropout_constants(rate)[1] if method is FASTLORA else 1 / (1 - rate)
    assert set(D.unique().tolist()) == {0.0, scale}
    layer = build_layer(method, case, inputs)
    seed_all(SEED)
    y = layer.forward()
    A, B, x, W = (tensor.detach().double() for tensor in (*layer.trained, inputs.x, inputs.W))
    truth = x @ W.t() + inputs.s * (x * D) @ A.t() @ B.t()
    torch.testing.assert_close(y.detach().double(), truth, rtol=1e-4, atol=1e-4)


def test_cases_are_taken_by_those_who_can():
    with fastlora.set_backend("triton"):
        here = present(CASES[0])
    assert set(here) | {"peft", "loralib"} == set(METHODS) - {"compiled"}
    assert "no dropout" in CASES[3].why_not(ADDMM)
    assert "nothing to drop" in CASES[3].why_not(PARAMETRIZED)
    assert "take the weight's dtype" in CASES[1].why_not(PARAMETRIZED)


def test_what_cannot_run_here_says_why(monkeypatch):
    monkeypatch.setattr("bench.methods.libraries.find_spec", lambda name: None)
    assert PEFT.why_absent(CPU, torch.float32) == "peft is not installed"
    with fastlora.set_backend("triton"):
        assert "not torch.float64" in FASTLORA.why_absent(DEVICE, torch.float64)
        assert FASTLORA.why_absent(DEVICE, torch.float32) is None


@pytest.mark.parametrize("name", present(CASES[0]))
def test_phases_leave_no_gradient_behind_and_backward_alone_gives_the_steps(name):
    inputs = CASES[0].inputs(CPU)
    layer = build_layer(METHODS[name], CASES[0], inputs)
    for work in phase_works([layer]).values():
        work()
    assert tuple(phase_works([layer])) == PHASES
    assert [leaf.grad for leaf in (layer.x, *layer.trained)] == [None] * (1 + len(layer.trained))
    whole = layer.forward_backward()[1:]
    assert all(torch.equal(a, b) for a, b in zip(layer.backward(layer.forward()), whole, strict=True))


def test_a_layer_shares_the_memory_of_its_inputs():
    inputs = CASES[0].inputs(CPU)
    assert layer_task(CASES[0], inputs).build().linear.weight.data_ptr() == inputs.W.data_ptr()


@pytest.mark.parametrize("base", ["nf4", pytest.param("int8", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("method", [FROZEN, PEFT, FASTLORA], ids=lambda method: method.name)
def test_each_method_is_held_to_the_unpacked_weight(method, base):
    pytest.importorskip("bitsandbytes")
    case = Case(16, 64, 32, 4, torch.float32, torch.float32, base=base)
    task = layer_task(case, case.inputs(CPU))
    assert format_of(task.build().linear) is not None
    assert format_of(task.plain().linear) is None
    assert check(method, task).failure is None


def test_peft_saves_half_as_much_again_for_wider_adapters_of_a_packed_weight():
    pytest.importorskip("bitsandbytes")
    case = Case(16, 64, 32, 4, torch.bfloat16, torch.float32, base="nf4")
    ours = layer_saved_bytes(FASTLORA, case, CPU)
    assert ours == 2 * 16 * 64 + 4 * 16 * 4
    assert layer_saved_bytes(PEFT, case, CPU) >= 1.5 * ours
