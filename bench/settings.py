"""How much one run does: in full on a GPU, tiny on the CPU for a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch

from bench.cases import Case, Measurement
from bench.schedule import EVERY, EVERY_WITH_DROPOUT, gpu_measurements
from fastlora.measuring.timing import Work, interleaved, rounds_within, timer_for, warm_up

# Microseconds by work and part.
Times = dict[str, dict[str, list[float]]]


class Effort(NamedTuple):
    """How much is done to get times, and the sizes that set the ceilings."""

    device: torch.device
    rounds: int
    fewest_rounds: int
    warm_up_rounds: int
    matmul_size: int
    copy_bytes: int

    def times(self, works: Mapping[str, Work], seconds: float | None = None) -> Times:
        """Warm up, then time the works in turn: for about so many seconds, else in all rounds."""
        timer, rounds = timer_for(self.device), self.rounds
        warm_up(works, self.warm_up_rounds, timer)
        if seconds is not None:
            rounds = rounds_within(seconds, works, timer, fewest=self.fewest_rounds, most=rounds)
        return interleaved(works, rounds, timer)


def effort_on(device: torch.device, rounds: int) -> Effort:
    """A level's: a product that takes the device milliseconds, a copy far larger than its caches."""
    size, copy = (2048, 2**30) if device.type == "cpu" else (8192, 4 * 2**30)
    return Effort(device, rounds, min(rounds, 7), 10, size, copy)


class Setting(NamedTuple):
    """What a run of `bench.gpu` does.

    Attributes:
        how: Of the measuring.
        measurements: In the order of their worth.
        tests: Arguments of pytest that choose the numeric tests.
        soak: The case that is run over and over.
        streams: The cases that run at once, a stream each.
        sanitized: The cases that run under the sanitizer.
        compilers: Processes that compile what will be measured.
        seconds: No step before the measurement takes longer, by its name.
    """

    how: Effort
    measurements: tuple[Measurement, ...]
    tests: tuple[str, ...]
    soak: Case
    soak_runs: int
    streams: tuple[Case, ...]
    sanitized: tuple[Case, ...]
    compilers: int
    seconds: dict[str, float]

    @property
    def device(self) -> torch.device:
        """Where."""
        return self.how.device

    @property
    def backend(self) -> str:
        """On a GPU what is taken by default; on the CPU the kernels, in the interpreter."""
        return "auto" if self.device.type == "cuda" else "triton"

    @property
    def cases(self) -> tuple[Case, ...]:
        """Of the measurements."""
        return tuple(measurement.case for measurement in self.measurements)


_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32

GPU: Final = Setting(
    how=Effort(torch.device("cuda"), 50, 7, 6, 8192, 4 * 2**30),
    measurements=gpu_measurements(),
    tests=(
        *("tests/routes/test_fused.py", "tests/formula/test_dropout.py", "tests/kernels/test_dropout.py"),
        # The sums of parts, without the test that compiles every tile of every table.
        "tests/routes/test_split_k.py::test_each_kind_of_tile_may_be_shared_by_several_programs",
        "tests/routes/test_split_k.py::test_few_rows_of_a_long_contraction_are_split_by_themselves",
        "tests/routes/test_split_k.py::test_splits_are_added_in_the_same_order_every_time",
    ),
    # A ragged number of rows, enough blocks of them for every multiprocessor to hand over to others.
    soak=Case(2837, 4096, 4096, 16, _BF16, _BF16),
    soak_runs=2000,
    # None fills the machine for long, so that programs of one launch run among those of the others.
    streams=(
        Case(1000, 2048, 2048, 16, _BF16, _BF16),
        Case(130, 4096, 4096, 64, _BF16, _FP32),
        Case(520, 1000, 1024, 8, _FP16, _FP16),
        Case(2837, 1024, 4096, 16, _BF16, _BF16),
    ),
    # Aligned, which TMA loads; ragged, which pointers do; rows of one warp; dropout and bias.
    sanitized=(
        Case(130, 256, 320, 16, _BF16, _BF16),
        Case(70, 131, 93, 20, _FP16, _FP32, dropout=0.3, bias=True),
        Case(1, 128, 256, 8, _BF16, _BF16),
        Case(40, 72, 80, 6, _FP32, _FP32, dropout=0.3),
    ),
    compilers=10,
    seconds={"tests": 150, "soak": 20, "sanitizer": 70, "tuning": 90, "choices": 60, "compile": 150},
)

# Triton's interpreter multiplies bf16 wrongly, so the dry run takes fp16.
_SMALL: Final = Case(37, 48, 80, 4, _FP16, _FP16)
_SMALLER: Final = Case(5, 40, 24, 3, _FP16, _FP32)
_MIXED: Final = Case(9, 16, 20, 3, _FP16, _FP32, dropout=0.25, bias=True)
DRY: Final = Setting(
    how=Effort(torch.device("cpu"), 2, 2, 1, 64, 2**20),
    measurements=(
        Measurement(Case(16, 32, 24, 4, _FP16, _FP16), EVERY, ("dry-run",), launches=True),
        Measurement(_MIXED, EVERY_WITH_DROPOUT, ("dry-run",), launches=True),
    ),
    tests=("tests/routes/test_fused.py", "-k", "adds_none or same_bits"),
    soak=_SMALL,
    soak_runs=5,
    streams=(_SMALL, _SMALLER, Case(24, 16, 16, 8, _FP32, _FP32), Case(1, 30, 30, 2, _FP16, _FP16)),
    sanitized=(_SMALL, _SMALLER._replace(dropout=0.3, bias=True)),
    compilers=1,
    seconds={"tests": 300, "soak": 10, "sanitizer": 60, "tuning": 60, "choices": 200, "compile": 300},
)

SETTINGS: Final = {"cuda": GPU, "cpu": DRY}
