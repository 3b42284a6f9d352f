"""The levels' commands, with little to do."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from bench import experts, linear, mnist, model, startup
from bench.cases import Case, Measurement
from bench.groups import comparable
from bench.methods import METHODS
from bench.results import Results
from bench.schedule import SELDOM_WHY
from bench.settings import effort_on
from tests.bench.rows import small_task

CASE = Case(6, 10, 12, 2, torch.float32, torch.float32, bias=True)
MIXED = Case(6, 10, 12, 2, torch.float16, torch.float32, dropout=0.1)
FEW = ("frozen", "unfused", "fastlora")


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    def effort(device, rounds):
        return effort_on(device, rounds)._replace(warm_up_rounds=1, matmul_size=32, copy_bytes=2**16)

    monkeypatch.setattr("bench.level.effort_on", effort)
    cases = (
        Measurement(CASE, FEW, ("eager",), launches=True),
        Measurement(MIXED, FEW[1:], ("eager",)),
    )
    monkeypatch.setattr(linear, "cpu_measurements", lambda: cases)
    monkeypatch.setattr(mnist, "digits_task", lambda device: small_task())
    monkeypatch.setattr("bench.level.torch.set_flush_denormal", lambda flush: True)


def methods(*names):
    """The options that choose these."""
    return [word for name in names for word in ("--methods", name)]


def run(level, tmp_path, *arguments, status=0):
    """(what was written, what was printed) by a level's command."""
    path = tmp_path / "results.json"
    given = ["--device", "cpu", "--rounds", "2", "--json", str(path), *arguments]
    done = CliRunner().invoke(level.main, given, catch_exceptions=False)
    assert done.exit_code == status, done.output
    return Results.read(path) if path.exists() else None, done.output


def test_a_layer_is_measured_in_every_phase_with_what_it_saves(tmp_path):
    picture = tmp_path / "linear.png"
    found, printed = run(linear, tmp_path, "--picture", str(picture))
    assert found.problems == []
    timed = {(row.method, row.phase) for row in found.rows if row.labels == CASE.labels()}
    phases = ("forward", "backward", "forward+backward")
    assert timed == {(method, phase) for method in FEW for phase in phases}
    saved = {(row.method, row.dropout): row.saved_bytes for row in found.rows if row.phase == phases[2]}
    assert saved["frozen", 0.0] == 0
    assert saved["fastlora", 0.1] < saved["unfused", 0.1]
    assert all(row.launches for row in found.rows if row.labels == CASE.labels())
    assert [found.ceilings["matmul_dtype"], found.other_ceilings[0]["matmul_dtype"]] == ["float32", "float16"]
    assert found.command.startswith("python -m bench.linear")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "linear 6x10->12 r2, fp32, bias, eager" in printed


def test_methods_can_be_chosen_unknown_ones_are_refused_and_where_one_is_left_out_is_listed(tmp_path):
    found, _ = run(linear, tmp_path, *methods("compiled", "frozen"), "--seconds", "0.1")
    assert {row.method for row in found.rows} == {"frozen"}
    assert [entry["why"] for entry in found.left_out] == [SELDOM_WHY] * 2
    found, _ = run(linear, tmp_path, *methods("frozen", "unfused"), "--most-rows", "6")
    assert {row.method for row in found.rows} == {"frozen", "unfused"}
    _, printed = run(linear, tmp_path, *methods("slowlora"), status=2)
    assert "slowlora" in printed


def test_the_step_of_a_net_is_split_for_each_way_to_compute_adam_and_the_exit_status_tells_of_wrong_methods(
    tmp_path, monkeypatch
):
    few = methods("frozen", "fastlora")
    found, _ = run(mnist, tmp_path, *few)
    assert {row.phase for row in found.rows} == {"forward", "backward", "optimizer", "step"}
    assert {(row.level, row.optimizer) for row in found.rows} == {
        ("mnist", "fused Adam"),
        ("mnist", "foreach Adam"),
    }
    assert len(comparable(found.rows)) == 2

    def broken(model, names, update):
        raise RuntimeError("out of resources")

    monkeypatch.setitem(METHODS, "fastlora", replace(METHODS["fastlora"], tune=broken))
    found, _ = run(mnist, tmp_path, *few, "--adam", "fused", status=1)
    assert len(found.problems) == 1
    assert {row.method for row in found.rows} == {"frozen"}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")
def test_a_llama_is_measured_in_each_mode(tmp_path):
    pytest.importorskip("transformers")
    few = ("--sizes", "tiny", "--length", "8", "--rank", "2", *methods("full", "fastlora"))
    found, _ = run(model, tmp_path, *few)
    assert found.problems == []
    steps = {(row.mode, row.method): row for row in found.rows if row.phase == "step"}
    assert set(steps) == {(mode, name) for mode in ("eager", "checkpoint") for name in ("full", "fastlora")}
    assert steps["checkpoint", "fastlora"].saved_bytes < steps["eager", "fastlora"].saved_bytes
    assert steps["eager", "full"].shape["length"] == 8


def test_first_steps_are_timed(monkeypatch):
    monkeypatch.setitem(startup.CASES, "cpu", CASE)
    taken = json.loads(startup.first_steps("fastlora", "cpu", torch.get_num_threads()))
    assert list(taken) == ["first step", "second step"]
    assert all(seconds > 0 for seconds in taken.values())


def test_startup_times_imports_and_first_steps_with_cold_then_warm_caches(tmp_path, monkeypatch):
    ran = []

    def printed_by(code, variables):
        ran.append(("import" if code.startswith("import") else "steps", *sorted(variables)))
        if ran[-1][0] == "import":
            return 9.0 if len(ran) == 1 else 0.25
        return {"first step": 2.0, "second step": 0.5}

    monkeypatch.setattr(startup, "printed_by", printed_by)
    monkeypatch.setattr(startup, "PACKAGES", ("fastlora", "nowhere_to_be_found"))
    found, _ = run(startup, tmp_path, *methods("fastlora"))
    assert found.absent == {"nowhere_to_be_found": "nowhere_to_be_found is not installed"}
    medians = {(row.phase, row.mode): row.median_us for row in found.rows}
    steps = {("first step", 2_000_000), ("second step", 500_000)}
    both = {(step, f"{kind} caches"): us for step, us in steps for kind in ("cold", "warm")}
    assert medians == {("import", "behind torch"): 250_000, **both}
    assert [row.samples_us for row in found.rows if row.phase == "import"] == [[250_000, 250_000]]
    assert ran.count(("import",)) == 3  # one more than asked for: the first is not counted
    assert ran.count(("steps", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")) == 4


def test_the_last_line_of_a_process_counts_and_one_that_fails_is_an_error():
    assert startup.printed_by("print('a warning'); print(2.5)", {}) == 2.5
    with pytest.raises(RuntimeError, match=r"exit status 1: ValueError: no"):
        startup.printed_by("raise ValueError('no')", {})


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")
def test_a_mixture_is_measured_by_every_method_beside_the_frozen_one(tmp_path):
    pytest.importorskip("peft")
    few = ("--sizes", "tiny", "--length", "8", "--rank", "2")
    found, printed = run(experts, tmp_path, *few)
    assert found.problems == []
    assert "experts qwen3-moe-tiny, batch 1 x 8, r2" in printed
    steps = {row.method: row for row in found.rows if row.phase == "step"}
    assert set(steps) == {"frozen", "full", "peft", "peft-fastlora", "fastlora"}
    # No W + s B A is built, nor kept, for a stack of experts.
    assert steps["fastlora"].saved_bytes == steps["peft-fastlora"].saved_bytes < steps["peft"].saved_bytes
    assert steps["fastlora"].peak_bytes < steps["peft"].peak_bytes < steps["full"].peak_bytes
    assert all(check["failure"] is None for check in found.checks)
