"""Choices of layers over a packed W: tuned for as such, found, and a plain layer's where there are none."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from fastlora import explain, info, set_backend
from fastlora.autograd import calls, operators
from fastlora.cli.commands import fastlora as command
from fastlora.formats.registry import FORMATS
from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING, Operands
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.routes import choices, decide, few_rows, fused_packed
from fastlora.routes.choices import current_versions, key_of, read_file
from fastlora.routes.plan import PACKED_ROWS, plan_for
from fastlora.tune_model import requests_of
from fastlora.tuning import tuner
from fastlora.tuning.choices_file import write_choices
from fastlora.tuning.contest import Contest
from fastlora.tuning.machine import Machine
from fastlora.tuning.packed_weights import BASES, packed_weight
from fastlora.tuning.report import Request
from fastlora.tuning.trial import Job
from fastlora.tuning.tuner import Means, tune_for
from fastlora_kernels import choice_content
from fastlora_kernels.choice_content import PACKED, Choice, Choices, as_content, read_choices
from fastlora_kernels.tables import Tile
from tests.packed import linear_4bit

CPU = torch.device("cpu")
HALF = torch.float16
NF4 = "bnb-4bit"
GPU = "NVIDIA Test 80GB"
TILE = Tile(16, 64, 64, 3, 4, 2)
FEW = Problem(16, 64, 48, 4, HALF, torch.float32, NF4)
INSIDE = Choice(PACKED, None, 4.0, 1.0, "vendor, 9.0 us")
BEFORE = Choice("kernels", TILE, 4.0, 1.5, "packed, 6.0 us")
VENDOR = Choice("vendor", None, 4.0, 2.0, "packed, 8.0 us")


@pytest.fixture
def path(tmp_path, monkeypatch):
    found = tmp_path / "choices.json"
    monkeypatch.setenv("FASTLORA_TUNE_FILE", str(found))
    return found


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if this machine had one GPU of sm_90, whose file is looked for."""
    monkeypatch.setattr(choices, "_gpu_of", lambda architecture: GPU)
    monkeypatch.setattr(decide, "route_on", lambda *_, **__: decide.Route("triton", "it is a GPU"))
    monkeypatch.setattr("fastlora.routes.architecture.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr("fastlora.routes.architecture.multiprocessors", lambda device: 132)


def keep(path, entries):
    """Write a file of {(problem, direction): choice}, and have it read."""
    made = {key_of(way, problem, False): choice for (problem, way), choice in entries.items()}
    write_choices(Choices({"gpu": GPU, **current_versions()}, made), path)
    decide.reload_tables()


def forward_of(problem):
    return decide.decide_for(problem, torch.device("cuda", 0), setting="auto").forward


def test_the_formats_of_a_file_are_those_that_are_tuned_for():
    assert ("plain", *BASES.values()) == choice_content.BASES
    assert set(BASES.values()) <= set(FORMATS)


def test_an_entry_without_a_format_is_of_a_plain_layer(path):
    plain = FEW._replace(base="plain")
    keep(path, {(FEW, "forward"): INSIDE, (plain, "forward"): VENDOR, (FEW, "backward"): BEFORE})
    held = read_file(path)
    assert {key.base for key in held.entries} == {"plain", NF4}
    content = as_content(held)
    assert read_choices(content) == held
    for entry in content["entries"]:
        if entry["base"] == "plain":
            del entry["base"]
    assert read_choices(content) == held


def test_a_packed_weights_choice_is_its_own_else_a_plain_layers(path, on_a_gpu):
    many = FEW._replace(M=64)
    plain, int8 = many._replace(base="plain"), many._replace(base="bnb-int8")
    keep(path, {(many, "forward"): VENDOR, (plain, "forward"): BEFORE})
    assert forward_of(many).name == "vendor"
    assert "over bnb-4bit" in forward_of(many).why
    assert [forward_of(one).name for one in (plain, int8)] == ["triton", "triton"]
    assert "over" not in forward_of(int8).why
    keep(path, {(many, "forward"): BEFORE, (plain, "forward"): VENDOR})
    taken = [plan_for("forward", "sm_90", one).tile == TILE for one in (many, int8, plain)]
    assert taken == [True, False, False]
    assert forward_of(int8).name == "vendor"


def test_the_kernel_that_unpacks_inside_is_not_chosen_for_rows_that_it_does_not_take(path, on_a_gpu):
    more = FEW._replace(M=PACKED_ROWS + 1)
    keep(path, {(FEW, "forward"): INSIDE, (FEW._replace(base="plain"), "forward"): VENDOR})
    assert forward_of(FEW).name == "triton"
    assert forward_of(more).name == "vendor"


@pytest.mark.parametrize(
    ("choice", "inside"),
    [(None, True), (INSIDE, True), (BEFORE, False), (VENDOR, False)],
    ids=("none", "inside", "tile", "vendor"),
)
def test_few_rows_are_unpacked_where_that_is_faster(path, on_a_gpu, choice, inside, monkeypatch):
    keep(path, {} if choice is None else {(FEW, "forward"): choice})
    M, K, N, r = FEW[:4]
    x, A, B = (torch.empty(size, dtype=HALF, device="meta") for size in ((M, K), (r, K), (N, r)))
    o = Operands(x, packed_weight(NF4, N, K, HALF), None, A.float(), B.float(), 1.0)
    assert (few_rows.decision_of(o, EVERYTHING, "auto") is not None) is inside
    assert few_rows.decision_of(o, EVERYTHING, "triton") is not None  # whatever was measured
    with monkeypatch.context() as patch:
        patch.setattr(choices, "loaded", lambda _: pytest.fail("looked up on the hot path"))
        assert (few_rows.decision_of(o, EVERYTHING, "auto") is not None) is inside


@pytest.mark.parametrize("choice", [INSIDE, BEFORE], ids=("inside", "tile"))
def test_explain_tells_of_it(path, on_a_gpu, choice):
    keep(path, {(FEW, "forward"): choice})
    layer = QuantizedLoRALinear.from_linear(linear_4bit(torch.randn(48, 64, dtype=HALF)), r=4)
    forward = explain((16, 64), layer).passes[0]
    assert "over bnb-4bit" in forward.path.why
    assert forward.unpacks is (choice is BEFORE)
    assert (forward.plan.tile == TILE) is (choice is BEFORE)


def test_info_counts_them(path, on_a_gpu):
    keep(path, {(FEW, "forward"): INSIDE, (FEW._replace(base="plain"), "forward"): VENDOR})
    assert info._choices(torch.device("cuda", 0)).startswith("2 passes (1 over a packed W), measured on")


def test_both_passes_are_decided_by_the_format_called_directly_and_as_operators(monkeypatch):
    layer = QuantizedLoRALinear.from_linear(linear_4bit(torch.randn(48, 64)), r=4)
    seen = []
    for module in (calls, operators):
        plain = module.decide
        monkeypatch.setattr(
            module,
            "decide",
            lambda o, *rest, at=plain: seen.append(decide.problem_of(o).base) or at(o, *rest),
        )
    layer(torch.randn(20, 64, requires_grad=True)).sum().backward()
    assert seen == [NF4]  # the backward pass is handed the decision
    with FlopCounterMode(display=False):
        layer(torch.randn(20, 64, requires_grad=True)).sum().backward()
    assert seen == [NF4] * 3


def means(speed, wrong=lambda one: None):
    return Means(
        lambda job, entrants: [wrong(one) for one in entrants],
        lambda job, entrants: {one: [speed(one)] * 3 for one in entrants},
    )


def tuned(path, means, problem=FEW):
    return tune_for([Request(problem)], Machine(CPU, "a test"), path=path, means=means)


def test_the_kernel_that_unpacks_inside_is_the_default_for_few_rows_forward_alone():
    here = Machine(CPU, "a test")
    default, entrants = tuner._entrants(Request(FEW), "forward", here)
    assert default == entrants[0] == PACKED
    for other in (FEW._replace(M=17), FEW._replace(base="plain"), FEW._replace(dtype=torch.float32)):
        assert PACKED not in tuner._entrants(Request(other), "forward", here)[1], other
    assert PACKED not in tuner._entrants(Request(FEW), "backward", here)[1]


def test_what_is_chosen_is_kept_by_its_format_and_what_is_wrong_never(tmp_path):
    fast = means(lambda one: 50.0 if one == PACKED else 100.0)
    report = tuned(tmp_path / "a.json", fast)
    entries = read_file(tmp_path / "a.json").entries
    assert entries[key_of("forward", FEW, False)].code == PACKED
    assert {key.base for key in entries} == {NF4}
    assert "bnb-4bit" in str(report)
    assert report.as_dict()["found"][0]["base"] == NF4
    bad = means(lambda one: 50.0 if one == PACKED else 100.0, lambda one: "wrong" if one == PACKED else None)
    report = tuned(tmp_path / "b.json", bad)
    assert read_file(tmp_path / "b.json").entries[key_of("forward", FEW, False)].code != PACKED
    assert any("packed: wrong" in line for line in report.failures)


def test_a_job_keeps_the_format():
    job = Job("cuda", "forward", FEW, True, 200)
    assert Job.loads(job.dumps([PACKED])) == (job, [PACKED])


@pytest.mark.parametrize("base", BASES.values())
def test_a_contest_over_a_packed_weight_finds_what_is_wrong(base, monkeypatch):
    torch.manual_seed(0)
    problem = Problem(9, 64, 32, 4, HALF, torch.float32, base)
    contest = Contest(CPU, "forward", problem, num_sets=1, bias=True)
    with set_backend("triton"):
        for candidate in (PACKED, TILE):
            contest.check(candidate, repeats=2)
    assert contest.sets[0].packed is not None
    inside, unpacked = fused_packed.few_rows, FORMATS[base].dequantize
    monkeypatch.setattr(fused_packed, "few_rows", lambda o: (inside(o)[0] * 1.02, inside(o)[1]))
    monkeypatch.setattr("fastlora.tuning.contest.dequantize", lambda given: unpacked(given) * 1.02)
    for candidate in (PACKED, TILE):
        with pytest.raises(AssertionError, match="exceeds the budget"):
            contest.check(candidate)


def test_a_models_packed_layers_are_tuned_for_as_such():
    layer = QuantizedLoRALinear.from_linear(linear_4bit(torch.randn(48, 64, dtype=HALF)), r=4)
    (one,) = requests_of(torch.nn.Sequential(layer), [16])
    assert one.problem == FEW


@pytest.mark.exhaustive
def test_a_dry_run_takes_every_step(tmp_path):
    out = tmp_path / "choices.json"
    options = ["--shape", "16,64,64,8", "--base", "nf4", "--out", str(out), "--json"]
    found = CliRunner().invoke(command, ["tune", "--dry-run", *options])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["failures"] == []
    assert PACKED in told["found"][0]["times_us"]
    assert [key.base for key in read_file(out).entries] == [NF4, NF4]


def test_a_base_that_is_not_known_is_refused():
    found = CliRunner().invoke(command, ["tune", "--dry-run", "--base", "gptq"])
    assert found.exit_code == 2
    assert "'nf4'" in found.output
