"""Layers case by case: results are written after each, and what an earlier run did is not done again."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.cases import Measurement
from bench.ceilings import keep_ceilings
from bench.counts import profile_case
from bench.measure import measure_case, on_record
from bench.methods import Method
from bench.results import Results
from bench.settings import Effort
from bench.tables import say

# On a GPU a case takes seconds, with compilation perhaps 30; one that takes this long hangs.
_HANGS_SECONDS: Final = 120

Step = Callable[[Measurement], None]

# Kept free of cases, for the counts and the tables at the end.
_LAST_SECONDS: Final = 25


@dataclass
class Run:
    """Measurements to be taken into results.

    The device's cache sets the number of input sets. Behind a deadline, of `time.monotonic`, nothing begins,
    and a step that hangs ends the process.
    """

    results: Results
    how: Effort
    measurements: Sequence[Measurement]
    cache_bytes: int
    deadline: float = math.inf

    def measure(self, methods: Sequence[Method]) -> None:
        """Measure the ceilings, time every case by the methods that it names, then count launches."""
        results, how = self.results, self.how
        ceilings = keep_ceilings(results, how, [one.case.dtype for one in self.measurements])
        results.save()

        def time_case(one: Measurement) -> None:
            own = [method for method in methods if method.name in one.methods]
            measure_case(results, one, how, own, ceilings[one.case.dtype], self.cache_bytes)

        def count_launches(one: Measurement) -> None:
            timed = results.methods_of(one.case.labels())
            own = [method for method in methods if method.name in timed]
            results.add_profiles(profile_case(one.case, how.device, own))

        untimed = [one for one in self.measurements if not results.methods_of(one.case.labels())]
        self._each("times", time_case, untimed, self.deadline - _LAST_SECONDS)
        counted = [one for one in self.measurements if one.launches and results.methods_of(one.case.labels())]
        uncounted = [one for one in counted if not results.has_profiles(one.case.labels())]
        self._each("launches", count_launches, uncounted, self.deadline)

    def _each(self, what: str, step: Step, measurements: Sequence[Measurement], deadline: float) -> None:
        """Take a step for each measurement, until time is up.

        A step that fails is a problem on record, and the next is taken: after an illegal memory access all of
        them fail, but the tables of what was measured before still come.
        """
        for measurement in measurements:
            number, case = self.measurements.index(measurement) + 1, measurement.case
            if time.monotonic() > deadline:
                say(f"{what:8}  time is up before {case}; the same command again goes on there")
                return
            start = time.monotonic()
            if deadline < math.inf:
                faulthandler.dump_traceback_later(_HANGS_SECONDS, exit=True)
            with on_record(self.results.problems, f"{case}, {what}"):
                step(measurement)
            faulthandler.cancel_dump_traceback_later()
            self.results.save()
            took = time.monotonic() - start
            say(f"{what:8}  {number}/{len(self.measurements)} {case}: {took:.1f} s")
