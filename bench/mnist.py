"""The MNIST job's fine-tuning step by every method: `python -m bench.mnist`.

784 -> 1000 -> 2000 -> 10 at batch 10, r = 1, fp32, with the step split into its parts. Adam counts for more
than the rest of full fine-tuning, so it is measured in more than one of torch's ways.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.level import Level, level, several
from bench.measure import measure_task
from bench.methods import IN_NETS
from bench.methods.method import Update
from bench.step import ADAMS
from bench.task import Batch, Outcome, Task
from fastlora.recipes.digits import read_sample
from fastlora.recipes.mlp import LAYERS, DigitsMLP
from fastlora.recipes.training import BATCH


def digits_task(device: torch.device) -> Task:
    """The net of the MNIST job at its seed's weights, fine-tuned on the nines that come with the package."""
    x, labels = read_sample().train.only(9).rows(device, torch.float32)
    whole = len(labels) // BATCH * BATCH
    # Copies: a view would keep all digits in memory, and count as saved for backward.
    batches = [
        {"x": rows.clone(), "labels": shown.clone()}
        for rows, shown in zip(x[:whole].split(BATCH), labels[:whole].split(BATCH), strict=True)
    ]
    return Task(
        name="784-1000-2000-10",
        shape={"batch": BATCH, "r": 1},
        dtype=torch.float32,
        build=lambda: DigitsMLP(seed=0).to(device),
        names=LAYERS,
        update=Update(r=1, alpha=1.0, dropout=0.0, adapter_dtype=torch.float32),
        batches=batches,
        run=_run,
    )


def _run(model: nn.Module, batch: Batch) -> Outcome:
    logits = model(batch["x"])
    return Outcome(nn.functional.cross_entropy(logits, batch["labels"]), logits)


@level("mnist", __doc__, 300, IN_NETS)
@several("--adam", ADAMS, ["fused", "foreach"])
def main(level: Level, adam: tuple[str, ...]) -> None:
    """Measure the step."""
    task = digits_task(level.effort.device)
    for way in adam:
        measure_task(level, task, task, "eager", way, level.present(task.dtype))


if __name__ == "__main__":
    main()
