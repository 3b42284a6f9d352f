"""The MNIST job's fine-tuning step by every method: `python -m bench.mnist`.

784 -> 1000 -> 2000 -> 10 at batch 10, r = 1, fp32, with the step split into its parts. Adam counts for more
than the rest of full fine-tuning, so it is measured in more than one of torch's ways.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.bars import draw_bars
from bench.ceilings import measure_ceilings
from bench.effort import effort_on
from bench.level import add_adam, add_device, finish, fresh_results, level_parser, prepare_torch
from bench.nets import TUNERS
from bench.nets.digits import digits_task
from bench.nets.measure import measure_task, present

LEVEL = "mnist"
ROUNDS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the step; the exit status, 1 if a method was wrong or failed."""
    parser = level_parser(LEVEL, __doc__.splitlines()[0], ROUNDS)
    add_device(parser, list(TUNERS))
    add_adam(parser, ("fused", "foreach"))
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    device = prepare_torch(options)
    results = fresh_results(LEVEL, arguments, device, options.commit)
    task = digits_task(device)
    effort = effort_on(device, options.rounds)
    ceilings = measure_ceilings(effort, task.dtype)
    results.ceilings = ceilings._asdict()
    tuners, results.absent = present(options.methods, task)
    for adam in options.adam:
        found = measure_task(LEVEL, task, task, "eager", adam, tuners, ceilings, effort)
        results.checks += found.checks
        results.rows += found.rows
        results.problems += found.problems
    return finish(results, options, draw_bars)


if __name__ == "__main__":
    sys.exit(main())
