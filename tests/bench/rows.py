"""Results made up for tests, and a net small enough to be tuned, checked and timed in them."""

from itertools import pairwise

import torch
from torch import nn

from bench.ceilings import Ceilings
from bench.environment import Environment
from bench.methods.method import Update
from bench.results import Results, Row
from bench.task import Outcome, Task

CPU = torch.device("cpu")
HERE = Environment(
    device={"kind": "cpu", "name": "a processor", "l2_bytes": 0},
    versions={"torch": "2.13.0", "hip": None},
    commit="0123456789abcdef",
    modified=False,
    sources="123",
)
LAYER = {"M": 128, "K": 1024, "N": 1024, "r": 16}
CEILINGS = Ceilings(1e12, "float16", 1, 1e12, 1)

SIZES = (12, 20, 16, 5)
ROWS = 6


def row(samples=(1.0, 2.0, 3.0), **changes):
    fields = {
        "level": "linear",
        "method": "fastlora",
        "phase": "forward+backward",
        "dtype": "float32",
        "adapter_dtype": "float32",
        "shape": LAYER,
        "dropout": 0.0,
        "mode": "eager",
        "peak_bytes": None,
        "launches": None,
        "floor_us": 1.0,
    }
    return Row.of_samples(samples, **{**fields, **changes})


def results(*rows, **changes):
    fields = {
        "environment": HERE,
        "command": "python -m bench.linear",
        "started": "2026-01-01T00:00:00+00:00",
    }
    return Results(**{**fields, **changes}, rows=list(rows))


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
