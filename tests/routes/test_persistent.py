"""The persistent kernels for sm_90: what they take, who takes them."""

import math
from types import SimpleNamespace

import pytest
import torch

from fastlora.accounting.explain import explain_problem
from fastlora.autograd import calls
from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import choices, decide, persistent
from fastlora.routes.choices import current_versions, key_of
from fastlora.routes.decide import Decision
from fastlora.routes.launch import scales
from fastlora.routes.route import Route
from fastlora.tuning import tuner
from fastlora.tuning.choices_file import write_choices
from fastlora.tuning.machine import Machine
from fastlora.tuning.report import Request
from fastlora_kernels.choice_content import (
    PERSISTENT,
    Choice,
    Choices,
    ContentError,
    as_content,
    read_choices,
)
from tests.routes.conftest import GPU

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16
PROBLEM = Problem(8192, 4096, 4096, 16, BF16, BF16)
CHOICE = Choice("persistent", None, 12.5, 1.25, "tile 128x256x64, 8 warps, 4 stages, 14.0 us")
DEVICE = torch.device("cuda", 0)


def file_of(problem=PROBLEM, code=PERSISTENT):
    choice = CHOICE._replace(code=code)
    entries = {key_of(direction, problem, False): choice for direction in ("forward", "backward")}
    return Choices({"gpu": GPU, "when": "2026-01-02", **current_versions()}, entries)


def routes(problem=PROBLEM, **options):
    found = decide.decide_for(problem, DEVICE, **{"setting": "auto", **options})
    return found.forward.name, found.backward.name


# Too few rows for them, were it not measured.
FEW = PROBLEM._replace(M=640)


def test_a_choice_takes_them_in_auto_alone(on_sm_90, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("FASTLORA_TUNE", "0")
        assert routes(FEW) == ("triton", "triton")
    write_choices(file_of(FEW), on_sm_90)
    decide.reload_tables()
    assert routes(FEW) == (PERSISTENT, PERSISTENT)
    assert routes(FEW, setting="triton") == ("triton", "triton")
    assert routes(FEW, needs=EVERYTHING._replace(dx=False)) == (PERSISTENT, "triton")
    assert routes(FEW, dropout=0.5) == routes(FEW, aligned=False) == ("triton", "triton")
    assert "the persistent kernels to be the fastest" in decide.decide_for(FEW, DEVICE).forward.why


def test_a_choice_that_cannot_be_followed_gives_the_plain_kernel_and_the_reason(on_sm_90, monkeypatch):
    monkeypatch.setattr(persistent, "triton_version", lambda: (3, 12, 1))
    write_choices(file_of(), on_sm_90)
    decide.reload_tables()
    route = decide.decide_for(PROBLEM, DEVICE, setting="auto").forward
    assert route.name == "triton"
    assert "were chosen, but they were compiled with Triton 3.6 to 3.9, and this is 3.12.1" in route.why
    assert persistent.told(DEVICE).startswith("not here: they were compiled with Triton")


@pytest.mark.parametrize(
    ("changed", "options", "why"),
    [
        ({}, {}, None),
        ({"adapter_dtype": FP32, "r": 16}, {}, None),
        ({"dtype": FP16, "adapter_dtype": FP16, "r": 64}, {}, None),
        ({"dtype": FP32, "adapter_dtype": FP32}, {}, "not float32 on float32"),
        ({"dtype": FP16, "adapter_dtype": FP32}, {}, "not float32 on float16"),
        ({"r": 65}, {}, "ranks up to 64, not 65"),
        ({"adapter_dtype": FP32, "r": 32}, {}, None),
        ({"adapter_dtype": FP32, "r": 33}, {}, "ranks up to 32, not 33"),
        ({}, {"dropout": True}, "no dropout"),
        ({}, {"aligned": False}, "16 bytes"),
        ({"N": 4092}, {}, "16 bytes"),
        ({"K": 4092}, {}, "16 bytes"),
    ],
    ids=str,
)
def test_what_they_take(changed, options, why):
    found = persistent.refusal("sm_90", PROBLEM._replace(**changed), **options)
    assert found is None if why is None else why in found


@pytest.mark.parametrize(("version", "taken"), [((3, 5, 1), False), ((3, 6, 0), True), ((3, 9, 4), True)])
def test_the_versions_of_triton_that_they_were_compiled_with_take_them(monkeypatch, version, taken):
    monkeypatch.setattr(persistent, "triton_version", lambda: version)
    assert (persistent.refusal("sm_90", PROBLEM) is None) == taken
    assert (persistent.refusal_here("sm_90") is None) == taken


def test_another_architecture_is_refused_and_told():
    assert persistent.refusal("sm_100", PROBLEM) == "they are written for sm_90, not for sm_100"
    assert persistent.told(torch.device("cpu")) == "not here: they are written for sm_90, not for interpreter"


def test_tuning_tries_them_where_they_take_a_wide_shape(monkeypatch):
    monkeypatch.setattr(tuner, "architecture_of", lambda device: "sm_90")
    here = Machine(torch.device("cpu"), "a processor")

    def tried(dropout=False, **changed):
        request = Request(PROBLEM._replace(**changed), dropout)
        return PERSISTENT in tuner._entrants(request, "forward", here)[1]

    assert tried()
    assert tried(r=64)
    assert not tried(r=128)
    assert not tried(M=16)
    assert not tried(dropout=True)
    monkeypatch.setattr(tuner, "architecture_of", lambda device: "sm_100")
    assert not tried()


def test_a_file_may_name_them_without_a_tile():
    assert read_choices(as_content(file_of())) == file_of()
    content = as_content(file_of())
    content["entries"][0]["tile"] = {}
    with pytest.raises(ContentError, match="tile must be null where the code is 'persistent'"):
        read_choices(content)


def test_choices_are_of_these_very_kernels(tmp_path, monkeypatch):
    (tmp_path / "hopper").mkdir()
    for name in ("a.py", "hopper/b.py"):
        (tmp_path / name).write_text("1")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(choices.importlib.util, "find_spec", lambda name: spec)
    before = choices._hash_of_kernels.__wrapped__()
    (tmp_path / "hopper" / "b.py").write_text("2")
    assert choices._hash_of_kernels.__wrapped__() != before


def test_explain_says_which_code_runs_and_why(on_sm_90, monkeypatch):
    monkeypatch.setattr("fastlora.accounting.explain.route_on", decide.route_on)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: GPU)
    write_choices(file_of(), on_sm_90)
    decide.reload_tables()
    told = explain_problem(PROBLEM, device=DEVICE)
    assert [one["launches"] for one in told.as_dict()["passes"]] == [1, 1]
    assert "  persistent: `fastlora tune` measured the persistent kernels to be the fastest" in str(told)
    assert "persistent kernels: by default where tiles of 128 x 256 fill the multiprocessors, else" in str(
        told
    )
    other = explain_problem(PROBLEM, device=DEVICE, gpu="B200")
    assert "persistent kernels: not for this call: they are written for sm_90, not for sm_100" in str(other)


def test_a_pass_goes_where_the_decision_says(monkeypatch):
    module = pytest.importorskip("fastlora.routes.hopper")
    made = random_inputs(8, 16, 16, 2, dtype=FP16, adapter_dtype=FP16)
    o, route, ran = made.call(0.0, None), Route(PERSISTENT, ""), []
    monkeypatch.setattr(module, "forward", lambda o: (ran.append("forward"), made.x))
    monkeypatch.setattr(module, "backward_of_all", lambda o, dy, p: ran.append("backward"))
    monkeypatch.setattr(module.plain, "backward", lambda *given: ran.append("plain"))
    decision = Decision(route, route)
    _, p, handed = calls.forward(o, EVERYTHING, "auto", decision)
    for dy, needs in (
        (made.dy, EVERYTHING),
        (made.dy[:, :15], EVERYTHING),
        (made.dy[::1, ::2], EVERYTHING),
        (made.dy, EVERYTHING._replace(dA=False)),
    ):
        with torch.no_grad():  # as in a backward pass
            calls.backward(o, dy, p, needs, "auto", handed)
    assert ran == ["forward", "backward", "backward", "plain", "plain"]


@pytest.mark.parametrize("s", [0.75, 1.0, 3.0, 1e5, -2.5, 0.0])
def test_in_fp16_a_power_of_two_is_taken_out_of_s(s):
    rest, power, inverse = scales(s, FP16)
    assert rest * power == s
    assert power * inverse == 1
    assert abs(rest) <= 1
    assert math.log2(power).is_integer()
    assert scales(s, BF16) == (s, None, None)
