"""One contest: tiles are checked against fp64 on one pass of one problem, then all are timed in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.cost import Problem
from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, plain
from fastlora.formula.oracle import Piece, mixed
from fastlora.measuring.devices import describe_device, number_of_sets
from fastlora.measuring.errors import assert_within_budget, split_eps
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.measuring.timing import (
    WHOLE,
    Call,
    Work,
    captured,
    interleaved,
    timer_for,
    warm_up,
)
from fastlora.routes.architecture import architecture_of, multiprocessors
from fastlora.routes.dequantize import dequantize
from fastlora.routes.passes import passes_of
from fastlora.routes.plan import Plan, plan_for
from fastlora.tuning.outcome import Outcome
from fastlora.tuning.packed_weights import packed_weight
from fastlora_kernels.choice_content import PACKED, PLAIN, VENDOR
from fastlora_kernels.tables import Tile

_ROUNDS: Final = 15
_WARM_UP_ROUNDS: Final = 5


def dtype_of(device: torch.device) -> torch.dtype:
    """What contests are held in: bf16 on a GPU, fp16 in the interpreter, which multiplies bf16 wrongly."""
    return torch.bfloat16 if device.type == "cuda" else torch.float16


class Contest:
    """A pass of one problem, on inputs that miss the cache.

    Args:
        device: Where.
        direction: "forward" or "backward".
        problem: Shape and dtypes.
        num_sets: Input sets; None for as many as miss the cache.
        dropout: Of x on the low-rank branch.
        bias: Whether there is a b.
    """

    def __init__(
        self,
        device: torch.device,
        direction: str,
        problem: Problem,
        num_sets: int | None = None,
        *,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        self.device = device
        self.direction = direction
        self.problem = problem
        self.dropout = dropout
        M, K, N, r, dtype, adapter_dtype, base = problem
        if num_sets is None:
            num_sets = number_of_sets(_bytes_of(problem), describe_device(device)["l2_bytes"])
        self.sets = [
            random_inputs(M, K, N, r, dtype=dtype, adapter_dtype=adapter_dtype, bias=bias, device=device)
            for _ in range(num_sets)
        ]
        if base != PLAIN:
            for one in self.sets:
                one.packed = packed_weight(base, N, K, dtype, device)
                one.W = FORMATS[base].dequantize(one.packed)  # by torch
        self.seed = torch.tensor([2026], device=device) if dropout else None
        D = self._kept() if dropout else None
        self.ps = [_dropped(one.x, D).float() @ one.A.float().t() for one in self.sets]
        self._truth = _results_of(self.sets[0].to(torch.float64), D)
        self._torchs = _results_of(self.sets[0], D)

    def check(self, candidate: Tile | str, repeats: int = 1) -> None:
        """Raise AssertionError unless its results are right, and have the same bits each time."""
        extra = split_eps(self.sets[0])
        first = self._results(candidate, self.sets[0], self.ps[0])
        for name, result in first.items():
            assert_within_budget(name, result, self._torchs[name], self._truth[name], extra=extra)
        for nth in range(1, repeats):
            for name, result in self._results(candidate, self.sets[0], self.ps[0]).items():
                if not torch.equal(result, first[name]):
                    raise AssertionError(f"{name}: run {nth + 1} of {repeats} has other bits than the first")

    def run(self, tiles: Sequence[Tile]) -> Outcome:
        """Check and time the tiles and the library."""
        failures: list[str] = []
        sound: list[Tile | str] = []
        for tile in tiles:
            try:
                self.check(tile)
                sound.append(tile)
            except Exception as error:  # a tile may fail in any way; the others are tried
                first_line = str(error).split("\n", 1)[0]
                failures.append(
                    f"{self.direction} {self.problem[:3]}, {tile}: {type(error).__name__}: {first_line}"
                )
        return Outcome(self.problem[:3], self.times([*sound, VENDOR]), failures)

    def times(self, candidates: Sequence[Tile | str]) -> dict[Tile | str, list[float]]:
        """Microseconds of each candidate, one for each round; they are timed in turn."""
        calls = {one: self._call(one) for one in candidates}
        if self.device.type == "cuda":
            calls = {name: captured(call) for name, call in calls.items()}
        timer = timer_for(self.device)
        works = {name: Work.of(call) for name, call in calls.items()}
        warm_up(works, _WARM_UP_ROUNDS, timer)
        times = interleaved(works, _ROUNDS, timer)
        return {name: [time / len(self.sets) for time in times[name][WHOLE]] for name in works}

    def try_once(self, tile: Tile) -> bool:
        """Run a tile once, so that it is compiled; whether it ran."""
        try:
            self._results(tile, self.sets[0], self.ps[0])
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # what went wrong on the GPU shows here, under this tile's name
        except Exception:  # the contest says why
            return False
        return True

    def _plan(self, tile: Tile | None, direction: str = "") -> Plan:
        return plan_for(
            direction or self.direction,
            architecture_of(self.device),
            self.problem,
            tile=tile,
            dropout=self.dropout,
            measured=False,
            multiprocessors=multiprocessors(self.device),
        )

    def _call(self, candidate: Tile | str) -> Call:
        """The pass on every input set."""
        pairs = list(zip(self.sets, self.ps, strict=True))
        return lambda: [self._results(candidate, inputs, p) for inputs, p in pairs]

    def _results(self, candidate: Tile | str, of: Inputs, p: Tensor) -> dict[str, Tensor]:
        o = of.call(self.dropout, self.seed)
        if of.packed is not None:
            W = of.packed if candidate == PACKED else plain(dequantize(of.packed), of.packed.format)
            o = o._replace(base=W)
        forward, backward = self._passes_of(candidate)
        if self.direction == "forward":
            y, p = forward(o)
            return {"y": y, "p": p}
        found = backward(o, of.dy, p, EVERYTHING)
        return {
            name: value for name, value in zip(("dx", "dA", "dB"), found, strict=True) if value is not None
        }

    def _passes_of(self, candidate: Tile | str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """(forward, backward) by a candidate."""
        # Triton reads TRITON_INTERPRET when it is imported.
        from fastlora.routes import fused

        if candidate == PACKED:
            from fastlora.routes.fused_packed import few_rows

            return few_rows, fused.backward  # it has no backward pass of its own
        if isinstance(candidate, str):
            route = passes_of(candidate)
            return route.forward, route.backward
        plan = self._plan(candidate)
        return functools.partial(fused.forward, plan=plan), functools.partial(fused.backward, plan=plan)

    def _kept(self) -> Tensor:
        """[M, K] in fp64: 0 where the table's tile drops an entry of x, else what it is scaled by.

        With W zero, dx is the update's alone, so that it is zero just where the mask is.
        """
        from fastlora.routes import fused

        o = self.sets[0].call(self.dropout, self.seed)
        o = o._replace(base=plain(torch.zeros_like(o.base.tensors[0])))
        dx, _, _ = fused.backward(
            o,
            self.sets[0].dy,
            o.x.new_zeros(o.x.shape[0], o.A.shape[0]).float(),
            EVERYTHING,
            self._plan(None, "backward"),
        )
        if dx is None:
            raise AssertionError("the backward pass gave no dx")
        return (dx != 0).double() * dropout_constants(self.dropout)[1]


def _bytes_of(problem: Problem) -> int:
    """Of x and of y or dy, and of W as it is stored."""
    if problem.base == PLAIN:
        return problem.base_bytes()
    whole = problem.dtype.itemsize * problem.N * problem.K
    return problem.base_bytes() - whole + FORMATS[problem.base].packed_bytes(problem.N, problem.K)


def _dropped(x: Tensor, D: Tensor | None) -> Tensor:
    return x if D is None else x * D.to(x.dtype)


def _results_of(inputs: Inputs, D: Tensor | None) -> dict[str, Tensor]:
    """y, p, dx, dA and dB of unfused torch, x_d = D * x, in the operands' own dtypes."""
    x, A, B = (t.detach().clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B))
    D = None if D is None else D.to(x.dtype)
    y = mixed(x, inputs.W, inputs.b, [Piece(0, x.shape[0], A, B, inputs.s, 0.0, D)])
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), inputs.dy)
    with torch.no_grad():
        p = _dropped(x, D).to(A.dtype) @ A.t()
    return {"y": y.detach(), "p": p, "dx": dx, "dA": dA, "dB": dB}
