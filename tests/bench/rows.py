"""Results made up for tests."""

from bench.environment import Environment
from bench.results import Results, Row

HERE = Environment(
    device={"kind": "cpu", "name": "a processor", "l2_bytes": 0},
    versions={"torch": "2.13.0", "hip": None},
    commit="0123456789abcdef",
    modified=False,
    sources="123",
)
LAYER = {"M": 128, "K": 1024, "N": 1024, "r": 16}


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
