"""The steps that run before anything is timed, compute-sanitizer among them: in processes that can be ended,
side by side, on record, never silently skipped."""

import os
import sys

import pytest
import torch

from bench import correctness as module
from bench.compiling import variants
from bench.correctness import read_tests, run_steps
from bench.process import Ended, run_child, run_process
from bench.sanitizer import find_sanitizer, read_sanitizer, run_sanitizer
from bench.settings import DRY
from tests.bench.rows import CPU

PASSED = "a.py::test_a PASSED [ 50%]\n=== 4 passed, 1 skipped in 2.51s ===\n"
FAILURE = "FAILED tests/routes/test_fused.py::test_a[1] - AssertionError: y: error 3"
FAILED = f"a.py::test_a[1] FAILED [100%]\n=== short summary ===\n{FAILURE}\n1 failed, 3 passed in 61.20s\n"
CUT = "[gw0] [  1%] PASSED a.py::test_a\n[gw3] [  2%] PASSED a.py::test_b\n[gw1] [  3%] FAILED a.py::test_c\n"
BROKEN = "ImportError while loading conftest\nE   no module named x\n"


@pytest.mark.parametrize(
    ("ended", "summary", "failures"),
    [
        (Ended(0, PASSED, 3.14), "4 passed, 1 skipped in 2.51s", []),
        (Ended(1, FAILED, 61.2), "1 failed, 3 passed in 61.20s", [FAILURE]),
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
    }


def test_a_process_leaves_status_and_output_and_one_that_hangs_is_ended_with_its_children():
    ended = run_process([sys.executable, "-c", "print('out'); raise SystemExit(3)"], dict(os.environ), 60)
    assert (ended.status, ended.output) == (3, "out\n")
    waits = f"subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
    code = f"import subprocess; print('begun', flush=True); {waits}"
    ended = run_process([sys.executable, "-c", code], dict(os.environ), 2)
    assert (ended.status, ended.output) == (None, "begun\n")
    assert ended.seconds < 20


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

    monkeypatch.setattr("bench.compiling.build_layer", broken)
    only_ours = tuple(one._replace(methods=("fastlora",)) for one in DRY.measurements)
    found = variants(DRY._replace(measurements=only_ours), 1, 2)
    assert not found["passed"]
    assert found["summary"] == f"fastlora, {DRY.cases[1]}: RuntimeError: out of shared memory"


CLEAN = "========= COMPUTE-SANITIZER\nran M=1\n========= ERROR SUMMARY: 0 errors\n"
RACES = "========= Error: Race\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n"
REFUSED = "========= Error: Device not supported. Please refer\n========= ERROR SUMMARY: 1 error\n"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No sanitizer on PATH, in CUDA's folders or in wheels."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("bench.sanitizer.sysconfig.get_path", lambda _: str(tmp_path))
    return tmp_path


def program(folder, script="exit 0"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("place", ["", "home/bin", "home/compute-sanitizer", "nvidia/cu13/bin"])
def test_it_is_found_on_the_path_beside_cuda_and_in_wheels(place, nowhere, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(nowhere / "home"))
    found = run_sanitizer("memcheck", DRY, nowhere)
    assert (found["passed"], found["summary"][:44]) == (None, "not run: no compute-sanitizer on PATH, in CU")
    path = program(nowhere / place)
    assert find_sanitizer() == str(path)


@pytest.mark.exhaustive
@pytest.mark.skipif(torch.cuda.is_available(), reason="the dry run's kernels are interpreted")
def test_the_kernels_run_under_it_and_its_summary_is_kept(nowhere, monkeypatch):
    arguments = (
        'test "$1 $2" = "--tool racecheck" || exit 9; while [ "$1" != -m ]; do python="$1"; shift; done'
    )
    say = "echo caching $PYTORCH_NO_CUDA_MEMORY_CACHING; "
    say += "echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'"
    fake = program(nowhere / "fake", f'{arguments}; "$python" "$@" && {{ {say}; }}')
    monkeypatch.setattr("bench.sanitizer.find_sanitizer", lambda: str(fake))
    found = run_sanitizer("racecheck", DRY, nowhere)
    assert found["passed"], (nowhere / "racecheck.log").read_text()
    assert found["summary"] == "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    log = (nowhere / "racecheck.log").read_text()
    assert (log.count("ran M="), "caching 1" in log) == (len(DRY.sanitized), True)


@pytest.mark.parametrize(
    ("ended", "passed", "summary"),
    [
        (Ended(0, CLEAN, 1.0), True, "ERROR SUMMARY: 0 errors"),
        (Ended(86, RACES, 1.0), False, "RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)"),
        (Ended(0, "ran M=1\n", 1.0), False, "exit status 0: ran M=1"),
        (Ended(1, "ImportError: no module", 1.0), False, "exit status 1: ImportError: no module"),
        (Ended(None, "=========", 60.1), False, "not finished after 60 s"),
        (Ended(1, REFUSED, 1.0), None, "not run: Error: Device not supported. Please refer"),
    ],
    ids=["clean", "races", "silent", "broken", "hanging", "refused"],
)
def test_what_it_says_is_what_counts(ended, passed, summary):
    found = read_sanitizer(ended, 60)
    assert (found["passed"], found["summary"]) == (passed, summary)
    assert found["finished"] == (ended.status is not None)
