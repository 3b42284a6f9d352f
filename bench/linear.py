"""One linear layer by every method: `python -m bench.linear`. Forward, backward, and both.

Each method is checked against fp64, then timed in turn with the others; the bytes that its forward pass saves
for backward are counted beside.
"""

from __future__ import annotations

import click

from bench.layer import PACKINGS
from bench.level import POSITIVE, Level, level
from bench.run import Run
from bench.schedule import EVERY, SELDOM, SELDOM_WHY, cpu_measurements, gpu_measurements, packed_measurements
from fastlora.measuring.devices import private_cache_bytes


@level("linear", __doc__, 60, EVERY)
@click.option("--seconds", default=1.0, show_default=True, help="Of timing for each case and phase.")
@click.option("--most-rows", type=POSITIVE, help="Only cases with so many rows of x and fewer.")
@click.option("--base", type=click.Choice(list(PACKINGS)), help="Layers packed so, and the same ones plain.")
def main(level: Level, seconds: float, most_rows: int | None, base: str | None) -> None:
    """Measure every case."""
    device = level.effort.device
    plain = gpu_measurements if device.type == "cuda" else cpu_measurements
    planned = [
        one._replace(seconds=seconds)
        for one in (packed_measurements(base, device) if base else plain())
        if most_rows is None or most_rows >= one.case.M
    ]
    for one in planned:
        if SELDOM in level.methods and SELDOM not in one.methods and not base:
            level.results.left_out.append({"method": SELDOM, "why": SELDOM_WHY, **one.case.labels()})
    methods = level.present(planned[0].case.dtype)
    cache_bytes = level.results.environment.device["l2_bytes"] or private_cache_bytes()
    Run(level.results, level.effort, planned, cache_bytes).measure(methods)


if __name__ == "__main__":
    main()
