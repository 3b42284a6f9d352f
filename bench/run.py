"""One run, step by step: results are written after each, and what an earlier run did is not done again."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.cases import Case, Setting
from bench.ceilings import Ceilings, measure_ceilings
from bench.correctness import run_soak, run_tests
from bench.launches import profile_case
from bench.measure import measure_case
from bench.methods import FASTLORA, METHODS, Method
from bench.problems import on_record
from bench.results import Results

# A case takes seconds, with compilation perhaps 30; one that takes this long hangs.
_HANGS_SECONDS: Final = 120


def say(line: str = "") -> None:
    """Print at once: a run that is killed loses what a buffer holds."""
    print(line, flush=True)  # noqa: T201


class Run:
    """Results in the making.

    Args:
        results: What there is so far.
        setting: What to do.
        path: Where the results are written.
        deadline: No case is begun later than this, on `time.monotonic`'s clock.
    """

    def __init__(self, results: Results, setting: Setting, path: Path, deadline: float) -> None:
        self.results = results
        self.setting = setting
        self.path = path
        self.deadline = deadline

    def check_correctness(self) -> None:
        """Run the numeric tests and the soak, unless they have passed."""
        results = self.results
        if not (results.tests and results.tests["passed"]):
            results.tests = run_tests(self.setting, self.path.with_name("correctness.log"))
            results.write(self.path)
        say(f"tests     {results.tests['summary']}")
        for failure in results.tests["failures"]:
            say(f"          {failure}")
        if not (results.soak and results.soak["passed"]):
            results.soak = run_soak(self.setting)
            results.write(self.path)
        say(f"soak      {results.soak['summary']}")

    def measure(self) -> None:
        """Measure the ceilings, time every case, then count launches."""
        results, setting = self.results, self.setting
        if results.ceilings is None:
            results.ceilings = measure_ceilings(setting)._asdict()
            results.write(self.path)
        say(f"ceilings  {Ceilings(**results.ceilings)}")
        self.methods = self._present_methods()
        self._each("times", self._time, lambda case: results.has(case.labels()))
        self._each("launches", self._count_launches, lambda case: results.has_profile(case.labels()))

    def _present_methods(self) -> list[Method]:
        """The methods that can run; the others are listed in the results with the reason."""
        results, dtype = self.results, self.setting.cases[0].dtype
        reasons = {method.name: method.why_absent(self.setting.device, dtype) for method in METHODS.values()}
        if results.soak and not results.soak["finished"]:
            reasons[FASTLORA.name] = "its soak did not finish: a kernel may hang"
        results.absent = {name: why for name, why in reasons.items() if why is not None}
        for name, why in results.absent.items():
            say(f"absent    {name}: {why}")
        return [method for name, method in METHODS.items() if name not in results.absent]

    def _time(self, case: Case) -> None:
        l2_bytes = self.results.environment.device["l2_bytes"]
        ceilings = Ceilings(**self.results.ceilings)
        found = measure_case(case, self.setting, self.methods, ceilings, l2_bytes)
        self.results.checks += found.checks
        self.results.problems += found.problems
        self.results.rows += found.rows

    def _count_launches(self, case: Case) -> None:
        timed = {row.method for row in self.results.rows if row.labels == case.labels()}
        methods = [method for method in self.methods if method.name in timed]
        self.results.add_profiles(profile_case(case, self.setting.device, methods))

    def _each(self, what: str, step: Callable[[Case], None], done: Callable[[Case], bool]) -> None:
        """Take a step for each case that it was not taken for, until time is up.

        A step that fails is a problem on record, and the next is taken: after an illegal memory access all of
        them fail, but the tables of what was measured before still come.
        """
        cases = self.setting.cases
        for number, case in enumerate(cases, 1):
            if done(case):
                continue
            if time.monotonic() > self.deadline:
                say(f"{what:8}  time is up before {case}; the same command again goes on there")
                return
            start = time.monotonic()
            faulthandler.dump_traceback_later(_HANGS_SECONDS, exit=True)
            with on_record(self.results.problems, f"{case}, {what}"):
                step(case)
            faulthandler.cancel_dump_traceback_later()
            self.results.write(self.path)
            say(f"{what:8}  {number}/{len(cases)} {case}: {time.monotonic() - start:.1f} s")
