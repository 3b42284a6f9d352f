"""Correctness before speed: the numeric tests and the soak, each in a process of its own.

A kernel that waits for ever would take the run down with it; a process can be ended.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.cases import Setting
from bench.environment import ROOT

# Most of the tests' time is compilation, which more processes share.
_MOST_WORKERS: Final = 12

# The soak's own time does not count start-up and compilation.
_START_UP_SECONDS: Final = 60


class Ended(NamedTuple):
    """A process that is over.

    Attributes:
        status: Its exit status; None where it was ended for its time.
        output: What it printed.
        seconds: How long it ran.
    """

    status: int | None
    output: str
    seconds: float


def run_tests(setting: Setting, log: Path) -> dict[str, Any]:
    """Run the numeric tests on the setting's device; the whole output goes to `log`.

    Returns:
        passed, finished, the closing line, the failures by name, and seconds.
    """
    ended = run_process(_pytest(setting), _surroundings(setting), setting.test_seconds)
    log.write_text(ended.output, encoding="utf-8")
    return read_tests(ended)


def read_tests(ended: Ended) -> dict[str, Any]:
    """What pytest's output says."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    closing = next((line for line in reversed(lines) if re.search(r"\d+ \w+.* in [\d.]+s", line)), None)
    if ended.status is None:
        closing = f"not finished after {ended.seconds:.0f} s"
    return {
        "passed": ended.status == 0,
        "finished": ended.status is not None,
        "summary": closing or f"pytest exited with status {ended.status}: {' '.join(lines[-1:])}",
        "failures": [line for line in lines if line.startswith(("FAILED ", "ERROR "))],
        "seconds": round(ended.seconds, 1),
    }


def run_soak(setting: Setting) -> dict[str, Any]:
    """Run `bench.soak` on the setting's device.

    Returns:
        What it printed, or why it printed nothing, with `finished`.
    """
    command = [sys.executable, "-m", "bench.soak", "--device", setting.device.type]
    ended = run_process(command, _surroundings(setting), setting.soak_seconds + _START_UP_SECONDS)
    lines = ended.output.splitlines()
    found = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), None)
    if found is None:
        last = lines[-1] if lines else "no output"
        why = "not finished" if ended.status is None else f"exit status {ended.status}: {last}"
        found = {"passed": False, "summary": why, "seconds": round(ended.seconds, 1)}
    return {"finished": ended.status is not None, **found}


def run_process(command: Sequence[str], surroundings: dict[str, str], seconds: float) -> Ended:
    """Run to the end, or end it with everything it started after `seconds`."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        return Ended(None, output, time.monotonic() - start)
    return Ended(process.returncode, output, time.monotonic() - start)


def _pytest(setting: Setting) -> list[str]:
    """pytest without plugins other than xdist, where there is one, and without warnings as errors.

    The machine with the GPU may hold any plugins, in any versions; they do not decide whether a kernel is
    right.
    """
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rfE", "--tb=short", "-W", "default"]
    command += ["-p", "no:cacheprovider"]
    if setting.device.type == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-p", "xdist", "-n", str(min(_MOST_WORKERS, os.cpu_count() or 1))]
    return [*command, *setting.tests]


def _surroundings(setting: Setting) -> dict[str, str]:
    roots = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    variables = {
        **os.environ,
        "PYTHONPATH": roots,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # The tests ask torch for deterministic algorithms; older ones then refuse cuBLAS without it.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if setting.device.type == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return variables
