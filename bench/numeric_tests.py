"""The test suite's numeric tests, on the device, by pytest in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from bench.process import Ended, outcome, run_process, surroundings
from bench.settings import Setting

# Most of the tests' time is compilation, which more processes share; some are left for what runs beside.
_MOST_WORKERS: Final = 10

_VERDICT: Final = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")


def run_tests(setting: Setting, folder: Path) -> dict[str, Any]:
    """Run them: a correctness step's result, and failures by name; the output goes to numeric-tests.log."""
    variables = {**surroundings(setting.device), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = run_process(_pytest(setting), variables, setting.test_seconds)
    (folder / "numeric-tests.log").write_text(ended.output, encoding="utf-8")
    return read_tests(ended)


def read_tests(ended: Ended) -> dict[str, Any]:
    """What pytest's output says; of tests that were ended for their time, how far they came."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    closing = next((line for line in reversed(lines) if re.search(r"\d+ \w+.* in [\d.]+s", line)), None)
    failures = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if ended.status is None:
        counted = Counter(match[1].lower() for line in lines if (match := _VERDICT.search(line)))
        counts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items()) or "none done"
        closing = f"not finished after {ended.seconds:.0f} s: {counts}"
        failures = [line for line in lines if re.search(r"\b(FAILED|ERROR)\b", line)]
    closing = closing or f"pytest exited with status {ended.status}: {' '.join(lines[-1:])}"
    finished = ended.status is not None
    return outcome(
        ended.status == 0, closing.strip("= "), ended.seconds, finished=finished, failures=failures
    )


def _pytest(setting: Setting) -> list[str]:
    """pytest without plugins other than xdist, where there is one, and without warnings as errors.

    The machine with the GPU may hold any plugins, in any versions; they do not decide whether a kernel is
    right.
    """
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "-rfE", "--tb=short", "-W", "default"]
    command += ["-p", "no:cacheprovider"]
    if setting.device.type == "cuda" and importlib.util.find_spec("xdist") is not None:
        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        command += ["-p", "xdist", "-n", str(workers), "--dist", "worksteal"]
    return [*command, *setting.tests]
