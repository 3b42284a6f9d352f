"""One contest: every tile is checked against fp64 on one pass and shape, then all are timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.devices import describe_device, number_of_sets
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.measuring.timing import (
    WHOLE,
    Call,
    Quartiles,
    Work,
    captured,
    interleaved,
    quartiles,
    ratio,
    timer_for,
    warm_up,
)
from fastlora.routes import cpu, vendor
from fastlora.routes.architecture import architecture_of
from fastlora.routes.plan import Plan, plan_for
from fastlora_kernels.tables import Tile

# The vendor's product with the low-rank part accumulated onto it, among the tiles.
LIBRARY: Final = "library"

# Of every contest.
RANK: Final = 16
_ROUNDS: Final = 15
_WARM_UP_ROUNDS: Final = 5


class Outcome(NamedTuple):
    """What a contest found.

    Attributes:
        shape: (M, K, N).
        times: Microseconds of each tile, and of LIBRARY, one for each round.
        failures: Why tiles have no times, a line each.
    """

    shape: tuple[int, int, int]
    times: dict[Tile | str, list[float]]
    failures: list[str]

    def ratio(self, one: Tile | str, other: Tile | str) -> Quartiles:
        """Of the time of one over the time of the other, round by round."""
        return ratio(self.times[one], self.times[other])

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "shape": dict(zip("MKN", self.shape, strict=True)) | {"r": RANK},
            "times": [
                {
                    "tile": tile if isinstance(tile, str) else tile._asdict(),
                    "median_us": round(quartiles(samples).median, 3),
                    "samples_us": [round(sample, 3) for sample in samples],
                }
                for tile, samples in self.times.items()
            ],
            "failures": self.failures,
        }


def dtype_of(device: torch.device) -> torch.dtype:
    """What contests are held in: bf16 on a GPU, fp16 in the interpreter, which multiplies bf16 wrongly."""
    return torch.bfloat16 if device.type == "cuda" else torch.float16


class Contest:
    """A pass of one shape in `dtype_of` the device, on inputs that miss the cache.

    Args:
        device: Where.
        direction: "forward" or "backward".
        shape: (M, K, N).
        num_sets: Input sets; None for as many as miss the cache.
    """

    def __init__(
        self,
        device: torch.device,
        direction: str,
        shape: tuple[int, int, int],
        num_sets: int | None = None,
    ) -> None:
        self.device = device
        self.direction = direction
        self.shape = shape
        self.dtype = dtype_of(device)
        M, K, N = shape
        if num_sets is None:
            base_bytes = self.dtype.itemsize * (M * K + N * K + M * N)
            num_sets = number_of_sets(base_bytes, describe_device(device)["l2_bytes"])
        self.sets = [
            random_inputs(M, K, N, RANK, dtype=self.dtype, bias=False, device=device) for _ in range(num_sets)
        ]
        self.ps = [inputs.x.float() @ inputs.A.float().t() for inputs in self.sets]

    def run(self, tiles: Sequence[Tile]) -> Outcome:
        """Check and time the tiles and the library."""
        failures: list[str] = []
        truth, torchs = oracle(self.sets[0]), gradients(self.sets[0])
        calls: dict[Tile | str, Call] = {}
        for tile in tiles:
            try:
                for name, result in self._results(self._plan(tile), self.sets[0], self.ps[0]).items():
                    assert_within_budget(name, result, torchs[name], truth[name])
                calls[tile] = self._call(self._plan(tile))
            except Exception as error:  # a tile may fail in any way; the others are tried
                first_line = str(error).split("\n", 1)[0]
                failures.append(
                    f"{self.direction} {self.shape}, {tile}: {type(error).__name__}: {first_line}"
                )
        calls[LIBRARY] = self._call(None)
        if self.device.type == "cuda":
            calls = {name: captured(call) for name, call in calls.items()}
        timer = timer_for(self.device)
        works = {name: Work.of(call) for name, call in calls.items()}
        warm_up(works, _WARM_UP_ROUNDS, timer)
        times = interleaved(works, _ROUNDS, timer)
        per_call = {name: [time / len(self.sets) for time in times[name][WHOLE]] for name in works}
        return Outcome(self.shape, per_call, failures)

    def try_once(self, tile: Tile) -> bool:
        """Run a tile once, so that it is compiled; whether it ran."""
        try:
            self._results(self._plan(tile), self.sets[0], self.ps[0])
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # what went wrong on the GPU shows here, under this tile's name
        except Exception:  # the contest says why
            return False
        return True

    def _plan(self, tile: Tile) -> Plan:
        problem = Problem(*self.shape, RANK, self.dtype, self.dtype)
        return plan_for(self.direction, architecture_of(self.device), problem, tile=tile)

    def _call(self, plan: Plan | None) -> Call:
        """The pass on every input set, by the kernels, or by the library where there is no plan."""
        return lambda: [self._results(plan, inputs, p) for inputs, p in zip(self.sets, self.ps, strict=True)]

    def _results(self, plan: Plan | None, of: Inputs, p: Tensor) -> dict[str, Tensor]:
        from fastlora.routes import fused  # Triton reads TRITON_INTERPRET when it is imported

        torchs = cpu if self.device.type == "cpu" else vendor
        if self.direction == "forward":
            y, p = torchs.forward(of.call()) if plan is None else fused.forward(of.call(), plan)
            return {"y": y, "p": p}
        given = (of.call(), of.dy, p, EVERYTHING)
        found = torchs.backward(*given) if plan is None else fused.backward(*given, plan)
        return {
            name: value for name, value in zip(("dx", "dA", "dB"), found, strict=True) if value is not None
        }
