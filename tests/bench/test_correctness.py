"""The steps that run before anything is timed: in processes that can be ended, side by side, on record."""

import os
import sys

import torch

from bench import correctness as module
from bench.correctness import run_steps
from bench.numeric_tests import read_tests
from bench.precompile import compile_share
from bench.process import Ended, run_child, run_process
from bench.settings import DRY

CPU = torch.device("cpu")

PASSED = "a.py::test_a PASSED [ 50%]\n=== 4 passed, 1 skipped in 2.51s ===\n"
FAILED = """a.py::test_a[1] FAILED [100%]
=========== short test summary info ===========
FAILED tests/routes/test_fused.py::test_a[1] - AssertionError: y: error 3
1 failed, 3 passed in 61.20s (0:01:01)
"""
CUT = """[gw0] [  1%] PASSED a.py::test_a
[gw3] [  2%] PASSED a.py::test_b
[gw1] [  3%] FAILED a.py::test_c
"""
BROKEN = "ImportError while loading conftest\nE   no module named x\n"


def test_the_closing_line_is_kept():
    found = read_tests(Ended(0, PASSED, 3.14))
    assert found == {
        "passed": True,
        "finished": True,
        "summary": "4 passed, 1 skipped in 2.51s",
        "failures": [],
        "seconds": 3.1,
    }


def test_failures_are_kept_by_name():
    found = read_tests(Ended(1, FAILED, 61.2))
    assert not found["passed"]
    assert found["summary"] == "1 failed, 3 passed in 61.20s (0:01:01)"
    assert found["failures"] == ["FAILED tests/routes/test_fused.py::test_a[1] - AssertionError: y: error 3"]


def test_tests_that_did_not_finish_did_not_pass_and_say_how_far_they_came():
    found = read_tests(Ended(None, CUT, 150.2))
    assert (found["passed"], found["finished"]) == (False, False)
    assert found["summary"] == "not finished after 150 s: 2 passed, 1 failed"
    assert found["failures"] == ["[gw1] [  3%] FAILED a.py::test_c"]


def test_tests_that_did_not_start_say_why():
    found = read_tests(Ended(4, BROKEN, 1.0))
    assert not found["passed"]
    assert found["summary"] == "pytest exited with status 4: E   no module named x"


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


def test_a_program_that_prints_no_result_has_not_passed_and_says_why():
    found = run_child("bench.soak:sideways", [], CPU, 60)
    assert (found["passed"], found["finished"]) == (False, True)
    assert found["summary"].startswith("exit status 1: ")
    assert "sideways" in found["summary"]


def lanes(monkeypatch, *steps):
    monkeypatch.setattr(module, "LANES", steps)


def test_steps_of_a_lane_follow_one_another_and_only_those_wanted_run(monkeypatch, tmp_path):
    ran = []

    def step(setting, folder):
        ran.append(folder)
        return {"passed": len(ran)}

    lanes(monkeypatch, {"one": step, "two": step, "three": step})
    found = list(run_steps(DRY, tmp_path, lambda name: name != "two"))
    assert found == [("one", {"passed": 1}), ("three", {"passed": 2})]
    assert ran == [tmp_path] * 2


def test_a_step_that_raises_has_not_passed_and_the_others_run(monkeypatch, tmp_path):
    def broken(setting, folder):
        raise OSError("disk full")

    lanes(monkeypatch, {"broken": broken, "sound": lambda *_: {"passed": True}})
    found = dict(run_steps(DRY, tmp_path, lambda name: True))
    assert (found["broken"]["passed"], found["broken"]["summary"]) == (False, "OSError: disk full")
    assert found["sound"]["passed"]


def test_a_variant_that_does_not_compile_is_named(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr("bench.precompile.build_layer", broken)
    only_ours = tuple(one._replace(methods=("fastlora",)) for one in DRY.measurements)
    found = compile_share(DRY._replace(measurements=only_ours), 1, 2)
    assert not found["passed"]
    assert found["summary"] == f"fastlora, {DRY.cases[1]}: RuntimeError: out of shared memory"
