"""A net small enough to be tuned, checked and timed in tests."""

from itertools import pairwise

import torch
from torch import nn

from bench.nets import Update
from bench.nets.task import Outcome, Task

SIZES = (12, 20, 16, 5)
ROWS = 6


def build():
    torch.manual_seed(3)
    layers = [nn.Linear(K, N) for K, N in pairwise(SIZES)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def run(model, batch):
    logits = model(batch["x"])
    return Outcome(nn.functional.cross_entropy(logits, batch["labels"]), logits)


def small_task(**changes):
    torch.manual_seed(4)
    fields = {
        "name": "small",
        "shape": {"batch": ROWS, "r": 3},
        "dtype": torch.float32,
        "build": build,
        "names": ["0", "2", "4"],
        "update": Update(r=3, alpha=4.0, dropout=0.0, adapter_dtype=torch.float32),
        "batches": [
            {"x": torch.randn(ROWS, SIZES[0]), "labels": torch.randint(SIZES[-1], (ROWS,))} for _ in range(2)
        ],
        "run": run,
    }
    return Task(**{**fields, **changes})
