"""compute-sanitizer: found where it may lie, read as it speaks, never silently skipped."""

import os

import pytest
import torch

from bench.process import Ended
from bench.sanitizer import find_sanitizer, read_sanitizer, run_sanitizer
from bench.settings import DRY

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the dry run's kernels are interpreted"
)

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
    assert find_sanitizer() is None
    path = program(nowhere / place)
    assert find_sanitizer() == str(path)


def test_where_there_is_none_the_result_says_so(nowhere):
    found = run_sanitizer("memcheck", DRY, nowhere)
    assert found["passed"] is None
    assert found["summary"].startswith("not run: no compute-sanitizer on PATH")


@pytest.mark.exhaustive
@needs_interpreter
def test_the_kernels_run_under_it_and_its_summary_is_kept(nowhere, monkeypatch):
    arguments = (
        'test "$1 $2" = "--tool racecheck" || exit 9; while [ "$1" != -m ]; do python="$1"; shift; done'
    )
    say = "echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'"
    fake = program(nowhere / "fake", f'{arguments}; "$python" "$@" && {say}')
    monkeypatch.setattr("bench.sanitizer.find_sanitizer", lambda: str(fake))
    found = run_sanitizer("racecheck", DRY, nowhere)
    assert found["passed"], (nowhere / "racecheck.log").read_text()
    assert found["summary"] == "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    assert (nowhere / "racecheck.log").read_text().count("ran M=") == len(DRY.sanitized)


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


def test_memory_is_not_cached_under_it(nowhere, monkeypatch):
    fake = program(nowhere / "fake", 'echo "caching $PYTORCH_NO_CUDA_MEMORY_CACHING"')
    monkeypatch.setattr("bench.sanitizer.find_sanitizer", lambda: str(fake))
    monkeypatch.setenv("PATH", os.defpath)
    run_sanitizer("memcheck", DRY, nowhere)
    assert (nowhere / "memcheck.log").read_text() == "caching 1\n"
