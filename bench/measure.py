"""One case measured: every method checked, then timed in turn, phase by phase and mode by mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from torch import Tensor

from bench.cases import Case, Measurement
from bench.ceilings import Ceilings
from bench.check import check
from bench.effort import Effort
from bench.floor import Floor, case_floor
from bench.memory import peak_bytes
from bench.methods import Layer, Method
from bench.phases import PHASES, Phase
from bench.problems import on_record
from bench.results import Row
from bench.settings import Setting
from bench.timing import (
    Call,
    captured_in_turn,
    interleaved,
    rounds_within,
    timer_for,
    warm_up,
)
from tests.testing import Operands

# Together the input sets are this many times the L2 cache. There are at least two; at most 16, since a layer
# so small that it would need more finds its inputs in the cache in training too.
_TIMES_L2: Final = 4
_FEWEST_SETS: Final = 2
_MOST_SETS: Final = 16


@dataclass
class CaseResult:
    """What measuring one case adds to the results; see `bench.results`."""

    left_out: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def leave_out(self, method: Method, why: str, case: Case) -> None:
        """Note that the case has no rows of the method."""
        self.left_out.append({"method": method.name, "why": why, **case.labels()})


class Rotation(NamedTuple):
    """A phase of a method once on every input set, so that no call finds its inputs in the cache.

    Attributes:
        before: What runs ahead of each timed call.
        call: What is timed.
    """

    before: Call
    call: Call


def measure_case(
    measurement: Measurement,
    setting: Setting | Effort,
    methods: Iterable[Method],
    ceilings: Ceilings,
    l2_bytes: int,
) -> CaseResult:
    """Check and time the methods.

    A method that is wrong is not timed; what raises is on record as a problem, and the rest goes on.

    Args:
        measurement: What is measured.
        setting: How.
        methods: Which; they must be present on the device.
        ceilings: Of the device, for the floor.
        l2_bytes: Size of its cache.
    """
    case, found = measurement.case, CaseResult()
    num_sets = min(_MOST_SETS, max(_FEWEST_SETS, -(-_TIMES_L2 * l2_bytes // case.base_bytes)))
    sets = [case.operands(setting.device) for _ in range(num_sets)]
    layers = _checked_layers(case, methods, sets, found)
    for phase_name, phase in PHASES.items():
        rotations = {name: _rotation(phase, built, sets) for name, built in layers.items()}
        with on_record(found.problems, f"{case}, {phase_name}"):
            _warm_up(rotations, setting)
            peaks = {
                name: _peak_bytes(_rotation(phase, built[:1], sets[:1]), setting)
                for name, built in layers.items()
            }
            for mode in measurement.modes:
                timed = rotations
                if mode == "graph":
                    timed = _captured(case, phase_name, rotations, methods, found)
                # Captures empty torch's cache of memory, and the clocks may have fallen.
                for name, times in _times(timed, setting, measurement.seconds).items():
                    samples = [time / num_sets for time in times]
                    floor = case_floor(case, phase_name, ceilings)
                    found.rows.append(_row(case, name, phase_name, mode, samples, peaks[name], floor))
    return found


def _checked_layers(
    case: Case, methods: Iterable[Method], sets: list[Operands], found: CaseResult
) -> dict[str, list[Layer]]:
    """A layer on each input set, by method; of those that take the case and compute what they should."""
    layers = {}
    for method in methods:
        why_not = method.why_not(case)
        if why_not is not None:
            found.leave_out(method, why_not, case)
            continue
        with _tolerated(method, f"checking {method.name}", case, found):
            checked = check(method, sets[0], case.dropout)
            if checked.failure is not None and method.external:
                found.leave_out(method, f"wrong: {checked.failure}", case)
                continue
            found.checks.append({**checked._asdict(), **case.labels()})
            if checked.failure is None:
                layers[method.name] = [method.build(ops, case.dropout) for ops in sets]
    return layers


def _captured(
    case: Case,
    phase: str,
    rotations: dict[str, Rotation],
    methods: Iterable[Method],
    found: CaseResult,
) -> dict[str, Rotation]:
    """The rotations as CUDA graphs, without those that cannot be captured."""
    graphs = {}
    for method in methods:
        if method.name in rotations:
            before, call = rotations[method.name]
            with _tolerated(method, f"{phase}, capturing {method.name}", case, found):
                if PHASES[phase].is_prepared:
                    graphs[method.name] = Rotation(*captured_in_turn(before, call))
                else:
                    graphs[method.name] = Rotation(before, *captured_in_turn(call))
    return graphs


@contextmanager
def _tolerated(method: Method, doing: str, case: Case, found: CaseResult) -> Iterator[None]:
    """Go on behind an exception: a problem, or for another library's code a reason to leave it out."""
    raised: list[str] = []
    with on_record(raised, f"{case}, {doing}"):
        yield
    for problem in raised:
        if method.external:
            found.leave_out(method, problem.removeprefix(f"{case}, "), case)
        else:
            found.problems.append(problem)


def _rotation(phase: Phase, layers: list[Layer], sets: list[Operands]) -> Rotation:
    pairs = list(zip(layers, sets, strict=True))
    prepared: list[Tensor | None] = [None] * len(pairs)

    def before() -> None:
        prepared[:] = [phase.prepare(layer, ops) for layer, ops in pairs]

    def call() -> None:
        for number, (layer, ops) in enumerate(pairs):
            state, prepared[number] = prepared[number], None  # what a backward pass saved goes with it
            phase.timed(layer, ops, state)

    return Rotation(before, call)


def _warm_up(rotations: dict[str, Rotation], setting: Setting | Effort) -> None:
    calls, before = _apart(rotations)
    warm_up(calls, setting.warm_up_rounds, timer_for(setting.device), before)


def _times(
    rotations: dict[str, Rotation], setting: Setting | Effort, seconds: float
) -> dict[str, list[float]]:
    """Microseconds of each rotation, one for each round."""
    calls, before = _apart(rotations)
    timer = timer_for(setting.device)
    warm_up(calls, setting.warm_up_rounds, timer, before)
    rounds = rounds_within(seconds, calls, timer, before, fewest=setting.fewest_rounds, most=setting.rounds)
    return interleaved(calls, rounds, timer, before)


def _peak_bytes(rotation: Rotation, setting: Setting | Effort) -> int | None:
    return peak_bytes(rotation.call, setting.device, rotation.before)


def _apart(rotations: dict[str, Rotation]) -> tuple[dict[str, Call], dict[str, Call]]:
    calls = {name: rotation.call for name, rotation in rotations.items()}
    return calls, {name: rotation.before for name, rotation in rotations.items()}


def _row(
    case: Case, method: str, phase: str, mode: str, samples: Sequence[float], peak: int | None, floor: Floor
) -> Row:
    return Row.of_samples(
        samples,
        level="linear",
        method=method,
        phase=phase,
        **case.labels(),
        mode=mode,
        peak_bytes=peak,
        launches=None,
        floor_us=round(floor.us, 6),
        flops=floor.flops,
        moved_bytes=floor.moved_bytes,
    )
