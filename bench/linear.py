"""One linear layer by every method: `python -m bench.linear`. Forward, backward, and both.

Each method is checked against fp64, then timed in turn with the others; the bytes that its forward pass saves
for backward are counted beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import click

from bench.counts import profile_case
from bench.layer import WHOLE_PASS, layer_saved_bytes
from bench.level import POSITIVE, Level, level
from bench.measure import measure_case, on_record
from bench.methods import METHODS, UNDROPPED
from bench.schedule import SELDOM, SELDOM_WHY, linear_measurements
from fastlora.measuring.devices import private_cache_bytes

LEVEL: Final = "linear"


@level(LEVEL, 60, [name for name in METHODS if name != UNDROPPED.name])
@click.option("--seconds", default=1.0, show_default=True, help="Of timing for each case and phase.")
@click.option("--most-rows", type=POSITIVE, help="Only cases with so many rows of x and fewer.")
def main(level: Level, seconds: float, most_rows: int | None) -> None:
    """Measure every case."""
    results, device = level.results, level.device
    measurements = linear_measurements(device)
    ceilings = level.ceilings(*dict.fromkeys(one.case.dtype for one in measurements))
    here = level.present(measurements[0].case.dtype)
    cache = results.environment.device["l2_bytes"] or private_cache_bytes()
    for planned in measurements:
        case = planned.case
        if most_rows is not None and most_rows < case.M:
            continue
        if SELDOM in level.methods and SELDOM not in planned.methods:
            results.left_out.append({"method": SELDOM, "why": SELDOM_WHY, **case.labels()})
        own = [method for method in here if method.name in planned.methods]
        with on_record(results.problems, f"{LEVEL}, {case}"):
            planned = planned._replace(seconds=seconds)
            measure_case(results, planned, level.effort, own, ceilings[case.dtype], cache)
        with on_record(results.problems, f"{LEVEL}, {case}, counts"):
            timed = results.methods_of(case.labels())
            own = [method for method in own if method.name in timed]
            saved = {method.name: layer_saved_bytes(method, case, device) for method in own}
            for number, row in enumerate(results.rows):
                if row.phase == WHOLE_PASS and row.labels == case.labels():
                    results.rows[number] = replace(row, saved_bytes=saved[row.method])
            if planned.launches:
                results.add_profiles(profile_case(case, device, own))
        level.save()


if __name__ == "__main__":
    main()
