"""Methods checked, then timed in turn: on one layer, phase by phase and mode by mode, or in a net's steps."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from bench.cases import Case, Measurement
from bench.ceilings import Ceilings, Floor, Use, floors, net_uses
from bench.check import check
from bench.counts import device_events, host_peak_bytes, launches, peak_bytes
from bench.layer import (
    PHASES,
    UNPACKING,
    WHOLE_PASS,
    Layer,
    build_layer,
    layer_saved_bytes,
    layer_task,
    phase_works,
    unpacking_works,
)
from bench.level import Level
from bench.methods import FASTLORA, Method
from bench.results import Results, Row
from bench.settings import Effort
from bench.step import MODES, Trainer
from bench.task import Task
from fastlora.accounting.activations import saved_bytes
from fastlora.measuring.devices import number_of_sets
from fastlora.measuring.timing import WHOLE, Work, captured, captured_in_turn, nothing, timer_for, warm_up

Built = TypeVar("Built")


@contextlib.contextmanager
def on_record(problems: list[str], where: str) -> Iterator[None]:
    """Turn an exception in the block into a line of `problems`: device time is too scarce to end a run."""
    try:
        yield
    except Exception as error:
        first_line = str(error).split("\n", 1)[0]
        problems.append(f"{where}: {type(error).__name__}: {first_line}")


class Record(NamedTuple):
    """Where what is found of a layer or a net is kept: `where` in words, `labels` as in the file's rows."""

    results: Results
    where: str
    labels: Mapping[str, Any]

    def leave_out(self, method: Method, why: str) -> None:
        """Note that there are no rows of the method."""
        self.results.left_out.append({"method": method.name, "why": why, **self.labels})

    @contextlib.contextmanager
    def tolerated(self, method: Method, doing: str) -> Iterator[None]:
        """Go on behind an exception: a problem, or for another library's code a reason to leave it out."""
        raised: list[str] = []
        with on_record(raised, doing):
            yield
        for problem in raised:
            if method.external:
                self.leave_out(method, problem)
            else:
                self.results.problems.append(f"{self.where}, {problem}")

    def add_row(self, samples: list[float], floor: Floor | None, **fields: Any) -> None:
        """A row of these samples; its other fields are given."""
        least = {} if floor is None else floor._asdict()
        self.results.rows.append(Row.of_samples(samples, **fields, **least, **self.labels))


def measure_case(
    results: Results,
    one: Measurement,
    how: Effort,
    methods: Iterable[Method],
    ceilings: Ceilings,
    cache_bytes: int,
) -> None:
    """Check and time methods on a layer; a wrong one is not timed, and what raises is on record.

    All methods must be present; the ceilings set the floor, the device's cache the number of input sets.
    """
    case = one.case
    record = Record(results, str(case), case.labels())
    count = number_of_sets(case.problem.base_bytes(), cache_bytes)
    sets = [case.inputs(how.device) for _ in range(count)]
    task, floor = layer_task(case, sets[0]), floors([Use(case.problem)], ceilings)
    built = _right(record, methods, task, lambda method: [build_layer(method, case, one) for one in sets])
    unpacking = unpacking_works(case, sets) if case.base else {}
    for phase in PHASES if built else ():
        works = {method.name: phase_works(layers)[phase] for method, layers in built.items()}
        if unpacking:
            works[UNPACKING] = unpacking[phase]
        with on_record(results.problems, f"{case}, {phase}"):
            warm_up(works, how.warm_up_rounds, timer_for(how.device))
            held = _held_bytes(record, case, phase, built, how.device)
            for mode in one.modes:
                timed = _as_graphs(record, phase, works, built) if mode == "graph" else works
                # Captures empty torch's cache of memory, and the clocks may have fallen.
                for name, times in how.times(timed, one.seconds).items():
                    samples = [time / count for time in times[WHOLE]]
                    names = {"level": "linear", "method": name, "phase": phase, "mode": mode}
                    record.add_row(samples, floor[phase], **names, **held.get(name, {}))


def _held_bytes(
    record: Record, case: Case, phase: str, built: Mapping[Method, list[Layer]], device: torch.device
) -> dict[str, dict[str, int | None]]:
    """By method what a row says of memory: held at most, and saved for backward by the whole pass."""
    held: dict[str, dict[str, int | None]] = {}
    for method, layers in built.items():
        own = held[method.name] = {"peak_bytes": peak_bytes(phase_works(layers[:1])[phase], device)}
        if phase == WHOLE_PASS:
            with record.tolerated(method, f"counting what {method.name} saves"):
                own["saved_bytes"] = layer_saved_bytes(method, case, device)
    return held


def _as_graphs(
    record: Record, phase: str, works: Mapping[str, Work], built: Iterable[Method]
) -> dict[str, Work]:
    """The works that can be captured, as CUDA graphs; unpacking is our code."""
    methods, graphs = {method.name: method for method in built}, {}
    for name, work in works.items():
        with record.tolerated(methods.get(name, FASTLORA), f"{phase}, capturing {name}"):
            graphs[name] = as_graphs(work)
    return graphs


def measure_task(
    level: Level, task: Task, checked: Task, mode: str, adam: str, methods: Iterable[Method]
) -> None:
    """Check and time methods on a net's steps in a mode and with a way to compute Adam.

    `checked` is the same net, or fewer of its layers where fp64 has no room for all.
    """
    labels = {**task.labels(), "optimizer": f"{adam} Adam"}
    record, how = Record(level.results, f"{level.name} {task.name}, {mode}", labels), level.effort
    base, floor = task.build(), floors(net_uses(task), level.ceilings(task.dtype))

    def build(method: Method) -> Trainer:
        # One that trains the net's own weights cannot share them with others.
        tuned = method.tune(task.build() if method.trains == "W" else twin(base), task.names, task.update)
        trainer = Trainer(tuned._replace(model=MODES[mode](tuned.model)), task, adam)
        trainer.step()  # one that cannot run is left out of the rounds
        return trainer

    built = _right(record, methods, checked, build, mode)
    trainers = {method.name: trainer for method, trainer in built.items()}
    with on_record(level.results.problems, record.where):
        for name, times in how.times({name: trainer.step for name, trainer in trainers.items()}).items():
            counts = count_step(trainers[name], how.device)
            for part, samples in times.items():
                names = {"level": level.name, "method": name, "phase": part, "mode": mode}
                record.add_row(samples, floor.get(part), **names, **counts if part == WHOLE else {})


def _right(
    record: Record,
    methods: Iterable[Method],
    task: Task,
    build: Callable[[Method], Built],
    mode: str = "eager",
) -> dict[Method, Built]:
    """What `build` makes of each method that takes the task and computes what it should."""
    right, built = [], {}
    linears = [module for module in task.build().modules() if isinstance(module, nn.Linear)]
    layers = {(linear.in_features, linear.out_features) for linear in linears}
    for method in methods:
        whys = [why for layer in layers if (why := method.why_not(layer, task.dtype, task.update))]
        if whys:
            record.leave_out(method, whys[0])
            continue
        with record.tolerated(method, f"checking {method.name}"):
            # Each net counts as a recompilation of the first one, and the ninth would run eagerly.
            if mode != "eager":
                torch.compiler.reset()
            result = check(method, task, mode)
            if result.failure is not None and method.external:
                record.leave_out(method, f"wrong: {result.failure}")
                continue
            record.results.checks.append({**result._asdict(), **record.labels, "mode": mode})
            right += [method] if result.failure is None else []
    for method in right:
        with record.tolerated(method, f"building {method.name}"):
            built[method] = build(method)
    return built


def as_graphs(work: Work) -> Work:
    """The work as a CUDA graph, behind one of what runs before it."""
    (call,) = work.parts.values()
    if work.before is nothing:
        return Work.of(captured(call))
    before, replay = captured_in_turn(work.before, call)
    return Work.of(replay, before)


def count_step(trainer: Trainer, device: torch.device) -> dict[str, int | None]:
    """What one step holds at most with weights and Adam's state, saves for backward, and launches."""
    extra = peak_bytes(trainer.step, device) if device.type == "cuda" else host_peak_bytes(trainer.step)
    own = [*trainer.tuned.model.parameters(), *trainer.tuned.model.buffers()]
    saved = saved_bytes(trainer.forward, own)
    trainer.backward()
    trainer.optimize()
    return {
        "peak_bytes": trainer.held_bytes() + (extra or 0),
        "saved_bytes": saved,
        "launches": launches(device_events(trainer.step, device)),
    }


def twin(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own that lie in the model's memory."""
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    # As deepcopy's memo they stand for the copies of the model's own.
    return copy.deepcopy(model, {**shared})
