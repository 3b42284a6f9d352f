"""One run, step by step: results are written after each, and what an earlier run did is not done again."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.cases import Measurement
from bench.ceilings import Ceilings, measure_ceilings
from bench.correctness import CANDIDATES, SOAKS, run_steps
from bench.counts import profile_case
from bench.measure import measure_case, on_record, present
from bench.methods import FASTLORA, METHODS, UNDROPPED, Method
from bench.precompile import compile_all
from bench.process import run_child
from bench.results import Results
from bench.settings import Setting
from bench.tuning import compile_candidates
from fastlora.routes.decide import reload_tables

# A case takes seconds, with compilation perhaps 30; one that takes this long hangs.
_HANGS_SECONDS: Final = 120

# Kept free of cases, for the launches and the tables at the end.
_LAST_SECONDS: Final = 25
TUNING: Final = "tuning"
COMPILE: Final = "compile"


def say(line: str = "") -> None:
    """Print at once: a run that is killed loses what a buffer holds."""
    print(line, flush=True)  # noqa: T201


class Run:
    """Results in the making, written to `path`; nothing begins behind the deadline of `time.monotonic`."""

    def __init__(self, results: Results, setting: Setting, path: Path, deadline: float) -> None:
        self.results = results
        self.setting = setting
        self.path = path
        self.deadline = deadline

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

    def compile(self) -> None:
        """Compile what will be measured."""
        if not self._passed(COMPILE):
            self._note(COMPILE, compile_all(self.setting))

    def _passed(self, name: str) -> bool:
        return name in self.results.correctness and bool(self.results.correctness[name]["passed"])

    def _note(self, name: str, result: dict[str, Any]) -> None:
        self.results.correctness[name] = result
        self.results.write(self.path)
        say(f"{name:10}{result['summary']} ({result['seconds']:.0f} s)")
        for failure in result.get("failures", ()):
            say(f"          {failure}")

    def measure(self) -> None:
        """Measure the ceilings, time every case, then count launches."""
        results, setting = self.results, self.setting
        if results.ceilings is None:
            results.ceilings = measure_ceilings(setting.how, setting.cases[0].dtype)._asdict()
            results.write(self.path)
        ceilings, l2_bytes = Ceilings(**results.ceilings), results.environment.device["l2_bytes"]
        say(f"ceilings  {ceilings}")
        here = self._present_methods()

        def time_case(one: Measurement) -> None:
            methods = [method for method in here if method.name in one.methods]
            measure_case(results, one, setting.how, methods, ceilings, l2_bytes)

        def count_launches(one: Measurement) -> None:
            timed = results.methods_of(one.case.labels())
            methods = [method for method in here if method.name in timed]
            results.add_profiles(profile_case(one.case, setting.device, methods))

        def is_to_count(one: Measurement) -> bool:
            labels = one.case.labels()
            return one.launches and bool(results.methods_of(labels)) and not results.has_profile(labels)

        untimed = [one for one in setting.measurements if not results.methods_of(one.case.labels())]
        self._each("times", time_case, untimed, self.deadline - _LAST_SECONDS)
        uncounted = list(filter(is_to_count, setting.measurements))
        self._each("launches", count_launches, uncounted, self.deadline)

    def _present_methods(self) -> list[Method]:
        """The methods that can run; the others are listed in the results with the reason."""
        results, dtype = self.results, self.setting.cases[0].dtype
        methods, results.absent = present(METHODS, self.setting.device, dtype)
        hung = [name for name in SOAKS if not results.correctness.get(name, {"finished": True})["finished"]]
        if hung:
            why = f"{', '.join(hung)} did not finish: a kernel may hang"
            results.absent |= dict.fromkeys((FASTLORA.name, UNDROPPED.name), why)
        for name, why in results.absent.items():
            say(f"absent    {name}: {why}")
        return [method for method in methods if method.name not in results.absent]

    def _each(
        self,
        what: str,
        step: Callable[[Measurement], None],
        measurements: Sequence[Measurement],
        deadline: float,
    ) -> None:
        """Take a step for each measurement, until time is up.

        A step that fails is a problem on record, and the next is taken: after an illegal memory access all of
        them fail, but the tables of what was measured before still come.
        """
        total = len(self.setting.measurements)
        for measurement in measurements:
            number = self.setting.measurements.index(measurement) + 1
            case = measurement.case
            if time.monotonic() > deadline:
                say(f"{what:8}  time is up before {case}; the same command again goes on there")
                return
            start = time.monotonic()
            faulthandler.dump_traceback_later(_HANGS_SECONDS, exit=True)
            with on_record(self.results.problems, f"{case}, {what}"):
                step(measurement)
            faulthandler.cancel_dump_traceback_later()
            self.results.write(self.path)
            say(f"{what:8}  {number}/{total} {case}: {time.monotonic() - start:.1f} s")
