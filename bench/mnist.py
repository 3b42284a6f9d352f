"""The MNIST job's fine-tuning step by every method: `python -m bench.mnist`.

784 -> 1000 -> 2000 -> 10 at batch 10, r = 1, fp32, with the step split into its parts. Adam counts for more
than the rest of full fine-tuning, so it is measured in more than one of torch's ways.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.level import keep_ceilings, level, net_options
from bench.measure import measure_task, present
from bench.methods import IN_NETS
from bench.nets.digits import digits_task
from bench.results import Results
from bench.settings import Effort

LEVEL = "mnist"


@level(LEVEL, 300, IN_NETS)
@net_options(("fused", "foreach"))
def main(
    results: Results, device: torch.device, effort: Effort, methods: list[str], adam: list[str], **_: Any
) -> None:
    """Measure the step."""
    task = digits_task(device)
    ceilings = keep_ceilings(results, effort, [task.dtype])[task.dtype]
    here, results.absent = present(methods, device, task.dtype)
    for way in adam:
        results.add(measure_task(LEVEL, task, task, "eager", way, here, ceilings, effort))


if __name__ == "__main__":
    main()
