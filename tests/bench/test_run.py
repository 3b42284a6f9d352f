"""A run goes on where an earlier one ended, stops in time, and keeps what went wrong."""

import os
import time

import pytest
from click.testing import CliRunner

from bench import gpu
from bench.gpu import fresh_results, main
from bench.results import Results
from bench.run import Run
from bench.settings import DRY
from fastlora.routes.decide import reload_tables

SMALL = DRY._replace(
    measurements=tuple(one._replace(methods=("frozen", "unfused")) for one in DRY.measurements)
)
ROWS_A_CASE = 2 * 3


@pytest.fixture(autouse=True)
def _steps(monkeypatch):
    """Stands in for the steps of correctness; the one that the test names fails."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "DRY", SMALL)
    monkeypatch.setattr(gpu, "_DRY_SURROUNDINGS", {})
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda *_, **__: None)  # wants a real stderr
    monkeypatch.setattr("bench.run.run_steps", steps)
    found = {"passed": True, "finished": True, "summary": "compiled", "seconds": 0.0}
    monkeypatch.setattr("bench.run.compile_candidates", lambda device: None)
    monkeypatch.setattr("bench.run.compile_all", lambda setting: found)
    monkeypatch.setattr(
        "bench.run.run_child", lambda *given: {**found, "passed": False, "summary": "no tiles"}
    )


def steps(setting, folder, wanted, failing=()):
    for name in ("tests", "soak", "candidates"):
        if wanted(name):
            passed = name not in failing
            yield name, {"passed": passed, "finished": True, "summary": f"ran {name}", "seconds": 0.0}


def command(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def run(folder, deadline=60.0, results=None):
    results = results or fresh_results(SMALL, None)
    return Run(results, SMALL, folder / "results.json", time.monotonic() + deadline)


def test_what_an_earlier_run_did_is_kept_and_the_rest_is_done(tmp_path, capsys):
    first = run(tmp_path)
    first.measure()
    whole = Results.read(tmp_path / "results.json")
    assert len(whole.rows) == 2 * ROWS_A_CASE
    kept, profiles = whole.rows[:ROWS_A_CASE], list(whole.profiles)
    whole.rows = list(kept)
    capsys.readouterr()
    run(tmp_path, results=whole).measure()
    again = Results.read(tmp_path / "results.json")
    assert again.rows[:ROWS_A_CASE] == kept
    assert len(again.rows) == 2 * ROWS_A_CASE
    assert again.profiles == profiles
    assert "times     2/2" in (said := capsys.readouterr().out)
    assert "times     1/2" not in said


def test_steps_that_passed_are_not_run_again_and_others_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.run.run_steps", lambda *given: steps(*given, failing=("soak",)))
    one = run(tmp_path)
    one.check_correctness(then_tune=True)
    assert one.results.failures() == ["soak: ran soak"]
    capsys.readouterr()
    run(tmp_path, results=Results.read(tmp_path / "results.json")).check_correctness(then_tune=True)
    said = capsys.readouterr().out
    assert "ran soak" in said
    assert "ran tests" not in said


def test_candidates_are_compiled_only_where_they_will_be_tuned(tmp_path, capsys):
    run(tmp_path).check_correctness(then_tune=False)
    assert "ran candidates" not in capsys.readouterr().out
    run(tmp_path).check_correctness(then_tune=True)
    assert "ran candidates" in capsys.readouterr().out


def test_what_is_measured_after_tuning_runs_with_the_table_found(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTLORA_TABLES", raising=False)
    calls = []

    def tuned(target, arguments, device, seconds):
        calls.append(target)
        (tmp_path / "tables").mkdir()
        return {"passed": True, "finished": True, "summary": "tuned", "seconds": 1.0}

    monkeypatch.setattr("bench.run.run_child", tuned)
    first = run(tmp_path)
    first.tune()
    assert os.environ["FASTLORA_TABLES"] == str(tmp_path / "tables")
    monkeypatch.delenv("FASTLORA_TABLES")
    run(tmp_path, results=Results.read(tmp_path / "results.json")).tune()
    assert calls == ["bench.tuning:tune"]
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


def test_the_end_is_kept_free_for_launches_and_tables(tmp_path):
    first = run(tmp_path)
    first.measure()
    results = first.results
    results.rows, results.profiles = results.rows[:ROWS_A_CASE], []
    run(tmp_path, deadline=20, results=results).measure()
    assert len(results.rows) == ROWS_A_CASE
    assert {profile["shape"]["M"] for profile in results.profiles} == {SMALL.cases[0].M}


def test_kernels_that_hang_are_not_measured(tmp_path):
    one = run(tmp_path, deadline=0)
    one.results.correctness["streams"] = {"passed": False, "finished": False, "summary": "not finished"}
    one.measure()
    assert one.results.absent["fastlora"] == "streams did not finish: a kernel may hang"
    assert set(one.results.absent) >= {"fastlora", "fastlora-p0"}


def test_failures_are_printed_last_and_set_the_exit_status(tmp_path, monkeypatch):
    bad = fresh_results(SMALL, None)
    bad.problems.append("some case: RuntimeError")
    monkeypatch.setattr("bench.gpu.open_results", lambda path, fresh: bad)
    done = command("--dry-run", "--seconds", "0", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "FAILED    some case: RuntimeError" in done.output.splitlines()[-2]
