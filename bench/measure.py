"""One case measured: every method checked, then timed in turn, phase by phase and mode by mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.cases import Case, Setting
from bench.ceilings import Ceilings
from bench.check import check
from bench.floor import floor_us
from bench.memory import peak_bytes
from bench.methods import Layer, Method
from bench.phases import PHASES, Phase
from bench.problems import on_record
from bench.results import Row
from bench.timing import Call, captured, interleaved, quartiles, timer_for, warm_up
from tests.testing import Operands

# Together the input sets are this many times the L2 cache, and there are at least so many.
_TIMES_L2: Final = 4
_FEWEST_SETS: Final = 2


@dataclass
class CaseResult:
    """What measuring one case adds to the results; see `bench.results`."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def measure_case(
    case: Case, setting: Setting, methods: Iterable[Method], ceilings: Ceilings, l2_bytes: int
) -> CaseResult:
    """Check and time the methods.

    A method that is wrong is not timed; what raises is on record as a problem, and the rest goes on.

    Args:
        case: What is measured.
        setting: How.
        methods: Which; they must be present.
        ceilings: Of the device, for the floor.
        l2_bytes: Size of its cache.
    """
    found = CaseResult()
    num_sets = max(_FEWEST_SETS, -(-_TIMES_L2 * l2_bytes // case.base_bytes))
    sets = [case.operands(setting.device) for _ in range(num_sets)]
    layers = {}
    for method in methods:
        with on_record(found.problems, f"{case}, checking {method.name}"):
            checked = check(method, sets[0])
            found.checks.append({**checked._asdict(), **case.labels()})
            if checked.failure is None:
                layers[method.name] = [method.build(ops) for ops in sets]
    timer = timer_for(setting.device)
    for phase_name, phase in PHASES.items():
        where = f"{case}, {phase_name}"
        floor = floor_us(case, phase_name, ceilings)
        calls = {name: _rotation(phase, built, sets) for name, built in layers.items()}
        with on_record(found.problems, where):
            warm_up(calls, setting.warm_up_rounds, timer)
            peaks = {
                name: peak_bytes(_rotation(phase, built[:1], sets[:1]), setting.device)
                for name, built in layers.items()
            }
            for mode in setting.modes:
                timed = _captured(calls, where, found.problems) if mode == "graph" else calls
                # Captures empty torch's cache of memory, and the clocks may have fallen.
                warm_up(timed, setting.warm_up_rounds, timer)
                for name, times in interleaved(timed, setting.rounds, timer).items():
                    samples = [time / num_sets for time in times]
                    found.rows.append(_row(case, name, phase_name, mode, samples, peaks[name], floor))
    return found


def _captured(calls: Mapping[str, Call], where: str, problems: list[str]) -> dict[str, Call]:
    """The calls as CUDA graphs, without those that cannot be captured."""
    graphs = {}
    for method, call in calls.items():
        with on_record(problems, f"{where}, capturing {method}"):
            graphs[method] = captured(call)
    return graphs


def _rotation(phase: Phase, layers: list[Layer], sets: list[Operands]) -> Call:
    """The phase once on every input set, so that no call finds its inputs in the cache."""
    pairs = list(zip(layers, sets, strict=True))

    def rotate() -> None:
        for layer, ops in pairs:
            phase(layer, ops)

    return rotate


def _row(
    case: Case, method: str, phase: str, mode: str, samples: list[float], peak: int | None, floor: float
) -> Row:
    middle = quartiles(samples)
    return Row(
        level="linear",
        method=method,
        phase=phase,
        **case.labels(),
        dropout=0.0,
        mode=mode,
        median_us=round(middle.median, 3),
        q25_us=round(middle.q25, 3),
        q75_us=round(middle.q75, 3),
        peak_bytes=peak,
        launches=None,
        floor_us=round(floor, 6),
        samples_us=[round(sample, 3) for sample in samples],
    )
