"""A run goes on where an earlier one ended, stops in time, and keeps what went wrong."""

import os
import time

import pytest
from click.testing import CliRunner

from bench import gpu
from bench.correctness import Steps
from bench.gpu import main, present_methods
from bench.methods import METHODS
from bench.process import outcome
from bench.results import Results, resumed
from bench.run import Run
from bench.settings import DRY
from fastlora.routes.decide import reload_tables
from tests.bench.rows import CPU

SMALL = DRY._replace(
    measurements=tuple(one._replace(methods=("frozen", "unfused")) for one in DRY.measurements)
)
ROWS_A_CASE = 2 * 3


@pytest.fixture(autouse=True)
def _steps(monkeypatch):
    """Stands in for the steps before the measurement, of which the tuning fails."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "DRY", SMALL)
    monkeypatch.setattr(gpu, "_DRY_SURROUNDINGS", {})
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda *_, **__: None)  # wants a real stderr
    monkeypatch.setattr("bench.correctness.run_steps", steps)
    monkeypatch.setattr("bench.correctness.compile_candidates", lambda device: None)
    monkeypatch.setattr("bench.correctness.compile_variants", lambda setting: outcome(True, "compiled"))
    monkeypatch.setattr("bench.correctness.run_child", lambda *given: outcome(False, "no tiles"))


def steps(setting, folder, wanted, failing=()):
    for name in ("tests", "soak", "candidates"):
        if wanted(name):
            yield name, outcome(name not in failing, f"ran {name}", seconds=0.0)


def command(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def steps_in(folder):
    return Steps(resumed(Results.begin("bench.gpu", CPU, path=folder / "results.json")), SMALL, folder)


def measure(results, deadline=60.0):
    """Measure, and give what the file then holds."""
    run = Run(results, SMALL.how, SMALL.measurements, 0, time.monotonic() + deadline)
    run.measure([METHODS["frozen"], METHODS["unfused"]])
    return Results.read(results.path)


@pytest.fixture
def measured(tmp_path):
    """The results of a whole run."""
    return measure(Results.begin("bench.gpu", CPU, path=tmp_path / "results.json"))


def test_what_an_earlier_run_did_is_kept_and_the_rest_is_done(measured, capsys):
    assert len(measured.rows) == 2 * ROWS_A_CASE
    kept, profiles = measured.rows[:ROWS_A_CASE], list(measured.profiles)
    measured.rows, measured.profiles = list(kept), profiles[:ROWS_A_CASE]
    capsys.readouterr()
    again = measure(measured)
    assert again.rows[:ROWS_A_CASE] == kept
    assert len(again.rows) == 2 * ROWS_A_CASE
    assert again.profiles == profiles
    said = capsys.readouterr().out
    assert ("times     1/2" in said, "times     2/2" in said) == (False, True)


def test_the_end_is_kept_free_for_launches_and_tables(measured):
    measured.rows, measured.profiles = measured.rows[:ROWS_A_CASE], []
    found = measure(measured, deadline=20)
    assert len(found.rows) == ROWS_A_CASE
    assert {profile["shape"]["M"] for profile in found.profiles} == {SMALL.cases[0].M}


def test_steps_that_passed_are_not_run_again_and_others_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.correctness.run_steps", lambda *given: steps(*given, failing=("soak",)))
    one = steps_in(tmp_path)
    one.check_correctness(then_tune=True)
    assert one.results.failures() == ["soak: ran soak"]
    capsys.readouterr()
    steps_in(tmp_path).check_correctness(then_tune=True)
    said = capsys.readouterr().out
    assert ("ran soak" in said, "ran tests" in said) == (True, False)


@pytest.mark.parametrize("then_tune", [False, True])
def test_candidates_are_compiled_only_where_they_will_be_tuned(then_tune, tmp_path, capsys):
    steps_in(tmp_path).check_correctness(then_tune=then_tune)
    assert ("ran candidates" in capsys.readouterr().out) == then_tune


def test_what_is_measured_after_tuning_runs_with_the_table_found(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLORA_TABLES", "")
    calls = []

    def tuned(target, *_):
        calls.append(target)
        (tmp_path / "tables").mkdir(exist_ok=True)
        return outcome(True, "tuned")

    monkeypatch.setattr("bench.correctness.run_child", tuned)
    steps_in(tmp_path).tune()
    steps_in(tmp_path).tune()
    assert calls == ["bench.tuning:tuning", "bench.tuning:choices"]
    assert os.environ["FASTLORA_TABLES"] == str(tmp_path / "tables")
    monkeypatch.delenv("FASTLORA_TABLES")
    reload_tables()


def test_a_part_of_a_run_can_be_asked_for_and_time_can_run_out(tmp_path):
    done = command("--dry-run", "--only", "measure", "--seconds", "0", "--out", str(tmp_path))
    assert done.exit_code == 0
    found = Results.read(tmp_path / "results.json")
    assert set(found.correctness) == {"compile"}
    assert found.ceilings["matmul_flops"] > 0
    assert found.rows == []
    assert f"time is up before {SMALL.cases[0]}" in done.output


def test_kernels_that_hang_are_not_measured(tmp_path):
    one = steps_in(tmp_path)
    one.results.correctness["streams"] = outcome(False, "not finished", finished=False)
    here = {method.name for method in present_methods(one)}
    hung = {name for name, why in one.results.absent.items() if why.startswith("streams did not finish")}
    by_route = {"fastlora-vendor", "fastlora-plain"}
    assert hung == {"fastlora", *by_route, "grouped", "fastlora-p0"}
    assert not hung & here


def test_failures_are_printed_last_and_set_the_exit_status(tmp_path, monkeypatch):
    bad = Results.begin("bench.gpu", CPU)
    bad.problems.append("some case: RuntimeError")
    monkeypatch.setattr("bench.gpu.resumed", lambda fresh: bad)
    done = command("--dry-run", "--seconds", "0", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "FAILED    some case: RuntimeError" in done.output.splitlines()[-2]
