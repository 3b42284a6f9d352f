"""Correctness before speed: every step in a process of its own, with a time limit.

Steps of one lane run one after the other, the lanes side by side: tests and compilation keep many processors
busy, the soaks the GPU, and a sanitizer mostly itself.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.precompile import compile_all
from bench.process import Ended, outcome, run_child, run_process, surroundings
from bench.results import Results
from bench.run import say
from bench.sanitizer import run_sanitizer
from bench.settings import Setting
from bench.tuning import compile_candidates
from fastlora.routes.decide import reload_tables

Step = Callable[[Setting, Path], dict[str, Any]]

# A soak's own time does not count start-up and compilation.
_START_UP_SECONDS: Final = 60

# Most of the tests' time is compilation, which more processes share; some are left for what runs beside.
_MOST_WORKERS: Final = 10

_VERDICT: Final = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")


def run_tests(setting: Setting, folder: Path) -> dict[str, Any]:
    """Run the suite's numeric tests on the device; the output goes to numeric-tests.log."""
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


def _soak(how: str, setting: Setting, folder: Path) -> dict[str, Any]:
    return run_child("bench.soak:soak", [how], setting.device, setting.soak_seconds + _START_UP_SECONDS)


# What the tuning needs compiled, while there are processors to spare.
CANDIDATES: Final = "candidates"

TUNING: Final = "tuning"
CHOICES: Final = "choices"
COMPILE: Final = "compile"

# In these a kernel that waits for ever shows as a step that did not finish.
SOAKS: Final = {"soak": "repeat", "graph": "graph", "streams": "streams"}

LANES: Final[tuple[dict[str, Step], ...]] = (
    {"tests": run_tests},
    {name: functools.partial(_soak, how) for name, how in SOAKS.items()},
    {tool: functools.partial(run_sanitizer, tool) for tool in ("memcheck", "racecheck")},
    {CANDIDATES: lambda setting, folder: compile_candidates(setting.device)},
)


def run_steps(
    setting: Setting, folder: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the steps that are wanted by name, their logs in `folder`; give (name, result) as each ends."""
    lanes = [{name: step for name, step in lane.items() if wanted(name)} for lane in LANES]
    ended: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def run_lane(lane: dict[str, Step]) -> None:
        for name, step in lane.items():
            try:
                result = step(setting, folder)
            except Exception as error:  # on record as the step's; the others go on
                result = outcome(False, f"{type(error).__name__}: {error}", 0.0, finished=False)
            ended.put((name, result))

    for lane in lanes:
        threading.Thread(target=run_lane, args=(lane,), daemon=True).start()
    for _ in range(sum(map(len, lanes))):
        yield ended.get()


@dataclass
class Steps:
    """What comes before the measurement: a step that passed, now or in an earlier run, is not taken again."""

    results: Results
    setting: Setting
    path: Path

    def check_correctness(self, *, then_tune: bool) -> None:
        """Run the steps that have not passed yet; beside them, compile what the tuning will try."""

        def left(name: str) -> bool:
            return not self._passed(name) and (then_tune or name != CANDIDATES)

        for name, result in run_steps(self.setting, self.path.parent, left):
            self._note(name, result)

    def tune(self) -> None:
        """Search tiles, and go on with the table that comes of it."""
        folder = self.path.parent
        if not self._passed(TUNING):
            limit = self.setting.tune_seconds
            if not self._passed(CANDIDATES):
                compile_candidates(self.setting.device)
            arguments = [str(folder), limit, self.results.environment.commit]
            self._note(TUNING, run_child("bench.tuning:tune", arguments, self.setting.device, 2 * limit))
        # One that ran out of time leaves the table of the classes that it came to.
        if (folder / "tables").is_dir():
            os.environ["FASTLORA_TABLES"] = str((folder / "tables").resolve())
            reload_tables()

    def choose(self) -> None:
        """Prove and time every route that `fastlora tune` knows, and go on with the tiles that won."""
        folder, limit = self.path.parent, self.setting.choose_seconds
        if not self._passed(CHOICES):
            arguments = [str(folder), limit]
            self._note(CHOICES, run_child("bench.tuning:choose", arguments, self.setting.device, 2 * limit))
        if (folder / "choices.json").is_file():
            os.environ["FASTLORA_TUNE_FILE"] = str((folder / "choices.json").resolve())
            reload_tables()

    def compile(self) -> None:
        """Compile what will be measured."""
        if not self._passed(COMPILE):
            self._note(COMPILE, compile_all(self.setting))

    def hung(self) -> list[str]:
        """The soaks that did not finish: a kernel waits for ever in them."""
        return [
            name for name in SOAKS if not self.results.correctness.get(name, {"finished": True})["finished"]
        ]

    def _passed(self, name: str) -> bool:
        return name in self.results.correctness and bool(self.results.correctness[name]["passed"])

    def _note(self, name: str, result: dict[str, Any]) -> None:
        self.results.correctness[name] = result
        self.results.write(self.path)
        say(f"{name:10}{result['summary']} ({result['seconds']:.0f} s)")
        for failure in result.get("failures", ()):
            say(f"          {failure}")
