"""The parts that run before anything is timed: tests and soak, in processes that can be ended."""

import os
import sys

import pytest
import torch

import fastlora
from bench import soak as module
from bench.cases import DRY
from bench.correctness import Ended, read_tests, run_process
from bench.methods import FASTLORA, UNFUSED, Layer
from bench.soak import soak, soak_setting

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the dry run's kernels are interpreted"
)

PASSED = "....\n4 passed, 1 skipped in 2.51s\n"
FAILED = """..F.
=========== short test summary info ===========
FAILED tests/test_launch.py::test_a[1] - AssertionError: y: error 3
1 failed, 3 passed in 61.20s (0:01:01)
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
    assert found["failures"] == ["FAILED tests/test_launch.py::test_a[1] - AssertionError: y: error 3"]


def test_tests_that_did_not_finish_did_not_pass():
    found = read_tests(Ended(None, "..", 150.2))
    assert (found["passed"], found["finished"]) == (False, False)
    assert found["summary"] == "not finished after 150 s"


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


@needs_interpreter
def test_the_kernels_give_the_same_bits_over_and_over():
    found = soak_setting(DRY._replace(soak_runs=2))
    assert found["passed"]
    assert found["summary"] == "2 runs of forward and backward, all bitwise equal"
    assert found["different"] == {"y": 0, "dx": 0, "dA": 0, "dB": 0}
    assert not torch.are_deterministic_algorithms_enabled()


def soaked(apply_after):
    """A soak of three runs whose output goes through `apply_after`."""
    ops = DRY.soak.operands(torch.device("cpu"))
    layer = UNFUSED.build(ops)
    changed = Layer(lambda x: apply_after(layer.apply(x)), layer.trained)
    return soak(changed, ops, ["y", "dx", "dA", "dB"], runs=3, seconds=60)


def test_a_race_shows_as_a_difference():
    runs = iter([1.0, 1.0, 1.001, 1.0])
    found = soaked(lambda y: y * next(runs))
    assert not found["passed"]
    assert found["runs"] == 3
    assert found["different"]["y"] == 1


def test_nan_is_no_difference_and_a_lost_sign_is():
    assert soaked(lambda y: y * float("nan"))["different"]["y"] == 0
    runs = iter([0.0, -0.0, 0.0, 0.0])
    assert soaked(lambda y: y.abs() * next(runs))["different"]["y"] == 1


def test_a_soak_ends_with_its_time_and_without_a_run_it_has_not_passed():
    ops = DRY.soak.operands(torch.device("cpu"))
    with fastlora.set_backend("torch"):
        found = soak(FASTLORA.build(ops), ops, ["y", "dx", "dA", "dB"], runs=1000, seconds=-1)
    assert (found["passed"], found["runs"]) == (False, 0)


def test_buffers_are_poisoned_during_a_soak(monkeypatch):
    fresh = []
    monkeypatch.setattr(module, "soak", lambda *_: fresh.append(torch.empty(3)) or {"passed": True})
    soak_setting(DRY)
    assert fresh[0].isnan().all()
