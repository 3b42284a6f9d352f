"""Which layers the linear level measures: those of small nets, on a CPU; those of large ones, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from bench.cases import Case, Measurement
from bench.schedule import LLAMA_8B

_BF16, _FP32 = torch.bfloat16, torch.float32

# torch.compile takes seconds, on a busy CPU half a minute, for each shape.
SELDOM: Final = "compiled"
SELDOM_WHY: Final = "compiling takes longer than the rest: measured for one shape of a kind"

_OFTEN: Final = ("frozen", "full", "parametrized", "unfused", "addmm", "loralib", "peft", "fastlora")
_EVERY: Final = (*_OFTEN, SELDOM, "lorafusion", "transformer-engine")

# (M, K, N, r) of the MNIST job's net, and of a net for tabular data.
_MNIST: Final = ((10, 1000, 2000, 1), (10, 784, 1000, 1), (10, 2000, 10, 1))
_MLP: Final = ((64, 2000, 200, 3), (64, 20, 2000, 3), (64, 200, 2, 3))

# Where the products take most of the time.
_LARGE: Final = (
    (128, 1024, 1024, 16),
    (128, 1000, 2000, 16),
    (128, 1024, 4096, 16),
    (128, 4096, 1024, 16),
    (512, 1024, 1024, 16),
    (512, 1000, 2000, 16),
)

# What is saved for backward shows with dropout and adapters wider than the base.
_DROPPED: Final = Case(512, 1024, 1024, 16, _BF16, _FP32, dropout=0.1)


def linear_measurements(device: torch.device) -> tuple[Measurement, ...]:
    """What the level measures on a device."""
    return tuple(_on_gpu() if device.type == "cuda" else _on_cpu())


def _on_cpu() -> Iterator[Measurement]:
    for shapes, bias in ((_MNIST, True), (_MLP, True), (_LARGE, False)):
        for number, shape in enumerate(shapes):
            case = Case(*shape, _FP32, _FP32, bias=bias)
            yield Measurement(case, _OFTEN if number else _EVERY, ("eager",), launches=number == 0)
    yield Measurement(_DROPPED, _OFTEN, ("eager",), launches=True)


def _on_gpu() -> Iterator[Measurement]:
    for adapter_dtype, dropout in ((_BF16, 0.0), (_FP32, 0.0), (_FP32, 0.1)):
        for M in (8192, 2048):
            for number, (K, N) in enumerate(LLAMA_8B):
                case = Case(M, K, N, 16, _BF16, adapter_dtype, dropout=dropout)
                first = number == 0 and M == 8192
                yield Measurement(case, _EVERY if first else _OFTEN, ("eager", "graph"), launches=first)
