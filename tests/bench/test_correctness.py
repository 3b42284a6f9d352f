"""The steps that run before anything is timed: in processes that can be ended, side by side, on record."""

import os
import sys

import pytest

from bench import correctness as module
from bench.correctness import read_tests, run_steps
from bench.precompile import compile_share
from bench.process import Ended, run_child, run_process
from bench.settings import DRY
from tests.bench.rows import CPU

PASSED = "a.py::test_a PASSED [ 50%]\n=== 4 passed, 1 skipped in 2.51s ===\n"
FAILURE = "FAILED tests/routes/test_fused.py::test_a[1] - AssertionError: y: error 3"
FAILED = f"""a.py::test_a[1] FAILED [100%]
=========== short test summary info ===========
{FAILURE}
1 failed, 3 passed in 61.20s (0:01:01)
"""
CUT = """[gw0] [  1%] PASSED a.py::test_a
[gw3] [  2%] PASSED a.py::test_b
[gw1] [  3%] FAILED a.py::test_c
"""
BROKEN = "ImportError while loading conftest\nE   no module named x\n"


@pytest.mark.parametrize(
    ("ended", "summary", "failures"),
    [
        (Ended(0, PASSED, 3.14), "4 passed, 1 skipped in 2.51s", []),
        (Ended(1, FAILED, 61.2), "1 failed, 3 passed in 61.20s (0:01:01)", [FAILURE]),
        (
            Ended(None, CUT, 150.2),
            "not finished after 150 s: 2 passed, 1 failed",
            ["[gw1] [  3%] FAILED a.py::test_c"],
        ),
        (Ended(4, BROKEN, 1.0), "pytest exited with status 4: E   no module named x", []),
    ],
    ids=["passed", "failed", "cut", "broken"],
)
def test_what_tests_say_is_kept_and_of_those_that_were_cut_how_far_they_came(ended, summary, failures):
    assert read_tests(ended) == {
        "passed": ended.status == 0,
        "finished": ended.status is not None,
        "summary": summary,
        "failures": failures,
        "seconds": round(ended.seconds, 1),
    }


def test_a_process_that_hangs_is_ended_with_its_children():
    child = (
        f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
    )
    ended = run_process([sys.executable, "-c", f"print('begun', flush=True); {child}"], dict(os.environ), 2)
    assert (ended.status, ended.output) == (None, "begun\n")
    assert ended.seconds < 20


def test_a_process_leaves_status_and_output():
    ended = run_process([sys.executable, "-c", "print('out'); raise SystemExit(3)"], dict(os.environ), 60)
    assert (ended.status, ended.output) == (3, "out\n")


@pytest.mark.exhaustive
def test_a_program_that_prints_no_result_has_not_passed_and_says_why():
    found = run_child("bench.soak:sideways", [], CPU, 60)
    assert (found["passed"], found["finished"]) == (False, True)
    assert found["summary"].startswith("exit status 1: ")
    assert "sideways" in found["summary"]


def test_steps_of_a_lane_follow_one_another_only_those_wanted_run_and_one_that_raises_stops_none(
    monkeypatch, tmp_path
):
    ran = []

    def step(setting, folder):
        ran.append(folder)
        return {"passed": len(ran)}

    def broken(setting, folder):
        raise OSError("disk full")

    monkeypatch.setattr(module, "LANES", ({"one": step, "two": step, "broken": broken, "three": step},))
    found = list(run_steps(DRY, tmp_path, lambda name: name != "two"))
    assert [name for name, _ in found] == ["one", "broken", "three"]
    assert [result["passed"] for _, result in found] == [1, False, 2]
    assert found[1][1]["summary"] == "OSError: disk full"
    assert ran == [tmp_path] * 2


def test_a_variant_that_does_not_compile_is_named(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr("bench.precompile.build_layer", broken)
    only_ours = tuple(one._replace(methods=("fastlora",)) for one in DRY.measurements)
    found = compile_share(DRY._replace(measurements=only_ours), 1, 2)
    assert not found["passed"]
    assert found["summary"] == f"fastlora, {DRY.cases[1]}: RuntimeError: out of shared memory"
