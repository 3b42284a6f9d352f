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
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.compiling import compile_candidates, compile_variants
from bench.process import Ended, outcome, run_child, run_process, surroundings
from bench.results import Results
from bench.sanitizer import run_sanitizer
from bench.settings import Setting
from bench.tables import say
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
    ended = run_process(_pytest(setting), variables, setting.seconds["tests"])
    (folder / "numeric-tests.log").write_text(ended.output, encoding="utf-8")
    return read_tests(ended)


def read_tests(ended: Ended) -> dict[str, Any]:
    """What pytest's output says; of tests that were ended for their time, how far they came."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    last = f"pytest exited with status {ended.status}: {' '.join(lines[-1:])}"
    summary = next((line for line in reversed(lines) if re.search(r"\d+ \w+.* in [\d.]+s", line)), last)
    failures = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if ended.status is None:
        counted = Counter(match[1].lower() for line in lines if (match := _VERDICT.search(line)))
        counts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items()) or "none done"
        summary = f"not finished after {ended.seconds:.0f} s: {counts}"
        failures = [line for line in lines if re.search(r"\b(FAILED|ERROR)\b", line)]
    finished = ended.status is not None
    return outcome(ended.status == 0, summary.strip("= "), finished=finished, failures=failures)


def _pytest(setting: Setting) -> list[str]:
    """pytest without plugins other than xdist, where there is one, and without warnings as errors.

    The machine with the GPU may hold any plugins, in any versions; they do not decide whether a kernel is
    right.
    """
    options = "-o addopts= -v -rfE --tb=short -W default -p no:cacheprovider"
    if setting.device.type == "cuda" and importlib.util.find_spec("xdist") is not None:
        options += f" -p xdist -n {min(_MOST_WORKERS, os.cpu_count() or 1)} --dist worksteal"
    return [sys.executable, "-m", "pytest", *options.split(), *setting.tests]


def _soak(how: str, setting: Setting, folder: Path) -> dict[str, Any]:
    seconds = setting.seconds["soak"] + _START_UP_SECONDS
    return run_child("bench.soak:soak", [how], setting.device, seconds)


# What the tuning needs compiled, while there are processors to spare.
CANDIDATES: Final = "candidates"

# In these a kernel that waits for ever shows as a step that did not finish.
SOAKS: Final = {"soak": "repeat", "graph": "graph", "streams": "streams"}

LANES: Final[tuple[dict[str, Step], ...]] = (
    {"tests": run_tests},
    {name: functools.partial(_soak, how) for name, how in SOAKS.items()},
    {tool: functools.partial(run_sanitizer, tool) for tool in ("memcheck", "racecheck")},
    {CANDIDATES: lambda setting, folder: compile_candidates(setting.device)},
)

# Steps of the tuning, in order: what it leaves, and the variable that tells the package of it.
_TUNED: Final = {"tuning": ("tables", "FASTLORA_TABLES"), "choices": ("choices.json", "FASTLORA_TUNE_FILE")}


def run_steps(
    setting: Setting, folder: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the steps that are wanted by name, their logs in `folder`; give (name, result) as each ends."""
    lanes = [{name: step for name, step in lane.items() if wanted(name)} for lane in LANES]
    ended: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def run_lane(lane: dict[str, Step]) -> None:
        for name, step in lane.items():
            ended.put((name, taken(step, setting, folder)))

    for lane in lanes:
        threading.Thread(target=run_lane, args=(lane,), daemon=True).start()
    for _ in range(sum(map(len, lanes))):
        yield ended.get()


def taken(step: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """A step's result, with the seconds it took; one that raises has not passed, and the others go on."""
    start = time.monotonic()
    try:
        result = step(*given)
    except Exception as error:
        result = outcome(False, f"{type(error).__name__}: {error}", finished=False)
    return {**result, "seconds": round(time.monotonic() - start, 1)}


@dataclass
class Steps:
    """What comes before the measurement: a step that passed, now or in an earlier run, is not taken again."""

    results: Results
    setting: Setting
    folder: Path

    def check_correctness(self, *, then_tune: bool) -> None:
        """Run the steps that have not passed yet; beside them, compile what the tuning will try."""

        def left(name: str) -> bool:
            return not self._passed(name) and (then_tune or name != CANDIDATES)

        for name, result in run_steps(self.setting, self.folder, left):
            self._note(name, result)

    def tune(self) -> None:
        """Search tiles, then prove and time every route that `fastlora tune` knows; go on with what won."""
        folder, device, commit = self.folder, self.setting.device, self.results.environment.commit
        if not (self._passed(CANDIDATES) or self._passed("tuning")):
            compile_candidates(device)
        for name, (left, variable) in _TUNED.items():
            if not self._passed(name):
                limit = self.setting.seconds[name]
                arguments = [str(folder), limit, commit]
                self._note(name, taken(run_child, f"bench.tuning:{name}", arguments, device, 2 * limit))
            # One that ran out of time leaves what it came to.
            if (folder / left).exists():
                os.environ[variable] = str((folder / left).resolve())
                reload_tables()

    def compile(self) -> None:
        """Compile what will be measured."""
        if not self._passed("compile"):
            self._note("compile", taken(compile_variants, self.setting))

    def hung(self) -> list[str]:
        """The soaks that did not finish: a kernel waits for ever in them."""
        done = self.results.correctness
        return [name for name in SOAKS if name in done and not done[name]["finished"]]

    def _passed(self, name: str) -> bool:
        return bool(self.results.correctness.get(name, {}).get("passed"))

    def _note(self, name: str, result: dict[str, Any]) -> None:
        self.results.correctness[name] = result
        self.results.save()
        say(f"{name:10}{result['summary']} ({result['seconds']:.0f} s)")
        for failure in result.get("failures", ()):
            say(f"          {failure}")
