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
CEILINGS = Ceilings(1e12, "float32", 1, 1e12, 1)

SIZES = (12, 20, 16, 5)
ROWS = 6

_ROW = {
    "level": "linear",
    "method": "fastlora",
    "phase": "forward+backward",
    "dtype": "float32",
    "adapter_dtype": "float32",
    "shape": LAYER,
    "dropout": 0.0,
    "mode": "eager",
    "floor_us": 1.0,
}


def row(samples=(1.0, 2.0, 3.0), **changes):
    return Row.of_samples(samples, **_ROW | changes)


def results(*rows, environment=HERE, started="2026-01-01T00:00:00+00:00", **parts):
    return Results(environment, "python -m bench.linear", started, rows=list(rows), **parts)


def build():
    torch.manual_seed(3)
    layers = [nn.Linear(K, N) for K, N in pairwise(SIZES)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def run(model, batch):
    logits = model(batch["x"])
    return Outcome(nn.functional.cross_entropy(logits, batch["labels"]), logits)


def small_task(names=("0", "2", "4"), dropout=0.0):
    torch.manual_seed(4)
    batches = [
        {"x": torch.randn(ROWS, SIZES[0]), "labels": torch.randint(SIZES[-1], (ROWS,))} for _ in range(2)
    ]
    update = Update(r=3, alpha=4.0, dropout=dropout, adapter_dtype=torch.float32)
    return Task("small", {"batch": ROWS, "r": 3}, torch.float32, build, names, update, batches, run)
