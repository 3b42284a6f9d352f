"""The MNIST job's fine-tuning step: batches of 10 digits, 784 -> 1000 -> 2000 -> 10, r = 1."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from bench.methods.method import Update
from bench.task import Batch, Outcome, Task
from fastlora.recipes.digits import read_sample
from fastlora.recipes.mlp import LAYERS, DigitsMLP
from fastlora.recipes.training import BATCH

_DIGIT: Final = 9
_RANK: Final = 1


def digits_task(device: torch.device) -> Task:
    """The net of the MNIST job at its seed's weights, fine-tuned on the nines that come with the package."""
    x, labels = read_sample().train.only(_DIGIT).rows(device, torch.float32)
    whole = len(labels) // BATCH * BATCH
    # Copies: a view would keep all digits in memory, and count as saved for backward.
    batches = [
        {"x": rows.clone(), "labels": shown.clone()}
        for rows, shown in zip(x[:whole].split(BATCH), labels[:whole].split(BATCH), strict=True)
    ]
    return Task(
        name="784-1000-2000-10",
        shape={"batch": BATCH, "r": _RANK},
        dtype=torch.float32,
        build=lambda: DigitsMLP(seed=0).to(device),
        names=LAYERS,
        update=Update(r=_RANK, alpha=1.0, dropout=0.0, adapter_dtype=torch.float32),
        batches=batches,
        run=_run,
    )


def _run(model: nn.Module, batch: Batch) -> Outcome:
    logits = model(batch["x"])
    return Outcome(nn.functional.cross_entropy(logits, batch["labels"]), logits)
