"""One net measured: every tuner checked, then their steps timed in turn, part by part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.ceilings import Ceilings
from bench.effort import Effort
from bench.floor import Floor
from bench.launches import device_events
from bench.measure import CaseResult
from bench.memory import peak_bytes
from bench.nets import TUNERS
from bench.nets.check import check_tuner
from bench.nets.floor import linear_uses, step_floors
from bench.nets.modes import MODES
from bench.nets.task import Task
from bench.nets.trainer import Trainer
from bench.nets.tuner import Tuner
from bench.problems import on_record
from bench.results import Row
from bench.timing import Timer, timer_for, warm_up
from fastlora.activations import saved_bytes

STEP = "step"


class Counts(NamedTuple):
    """Of one step.

    Attributes:
        peak_bytes: Weights, optimizer's state, and the most that a step holds beside them; None on the CPU.
        saved_bytes: What its forward pass saves for backward.
        launches: Kernels, on the CPU torch operators.
    """

    peak_bytes: int | None
    saved_bytes: int
    launches: int


def present(names: Iterable[str], task: Task) -> tuple[list[Tuner], dict[str, str]]:
    """The tuners that can run a task, and why the others cannot, by name."""
    reasons = {name: TUNERS[name].why_absent(task.dtype, task.update) for name in names}
    absent = {name: why for name, why in reasons.items() if why is not None}
    return [TUNERS[name] for name in reasons if name not in absent], absent


def measure_task(
    level: str,
    task: Task,
    checked: Task,
    mode: str,
    adam: str,
    tuners: Iterable[Tuner],
    ceilings: Ceilings,
    how: Effort,
) -> CaseResult:
    """Check and time the tuners; one that is wrong is not timed, and what raises is on record.

    Args:
        level: Of the rows.
        task: What is timed.
        checked: What is checked: the same net, or fewer of its layers where fp64 has no room for all.
        mode: A key of MODES.
        adam: A key of ADAMS.
        tuners: Which; they must be present.
        ceilings: Of the device, for the floor.
        how: How much.
    """
    found = CaseResult()
    base, labels = task.build(), {**task.labels(), "optimizer": f"{adam} Adam"}
    floors = step_floors(linear_uses(task), ceilings)
    trainers: dict[str, Trainer] = {}
    right = []
    for tuner in tuners:
        with on_record(found.problems, f"{level} {task.name}, {mode}, checking {tuner.name}"):
            # Each net counts as a recompilation of the first one, and the ninth would run eagerly.
            torch.compiler.reset()
            result = check_tuner(tuner, checked, MODES[mode])
            found.checks.append({**result._asdict(), **labels, "mode": mode})
            right += [tuner] if result.failure is None else []
    torch.compiler.reset()
    for tuner in right:
        with on_record(found.problems, f"{level} {task.name}, {mode}, {tuner.name}"):
            model = task.build() if tuner.moves_weights else twin(base)
            tuned = tuner.tune(model, task.names, task.update)
            trainer = Trainer(tuned._replace(model=MODES[mode](tuned.model)), task, adam)
            trainer.step()  # one that cannot run is left out of the rounds
            trainers[tuner.name] = trainer
    timer = timer_for(how.device)
    with on_record(found.problems, f"{level} {task.name}, {mode}"):
        warm_up({name: trainer.step for name, trainer in trainers.items()}, how.warm_up_rounds, timer)
        samples = timed_steps(trainers, how.rounds, timer)
        for name, trainer in trainers.items():
            counts = count(trainer, how.device)
            for part, times in samples[name].items():
                found.rows.append(_row(level, name, part, mode, times, counts, floors.get(part), labels))
    return found


def timed_steps(
    trainers: Mapping[str, Trainer], rounds: int, new_timer: Callable[[], Timer]
) -> dict[str, dict[str, list[float]]]:
    """Microseconds of each part and of the step, by trainer and part, one for each round.

    The trainers step in turn, and the order turns round after each round, as in `bench.timing.interleaved`.
    """
    timers = {name: {part: new_timer() for part in (*t.parts(), STEP)} for name, t in trainers.items()}
    order = list(trainers)
    for _ in range(rounds):
        for name in order:
            if timers[name][STEP].leads_in:
                trainers[name].step()
            with timers[name][STEP]:
                for part, run in trainers[name].parts().items():
                    with timers[name][part]:
                        run()
        order.reverse()
    return {name: {part: timer.microseconds() for part, timer in own.items()} for name, own in timers.items()}


def count(trainer: Trainer, device: torch.device) -> Counts:
    """What one step holds and launches."""
    extra = peak_bytes(trainer.step, device)
    tuned = trainer.tuned
    own = [*tuned.model.parameters(), *tuned.model.buffers()]
    saved = saved_bytes(trainer.forward, own)
    trainer.backward()
    trainer.optimize()
    counted = "kernel" if device.type == "cuda" else "cpu_op"
    launches = sum(category == counted for category, _ in device_events(trainer.step, device))
    return Counts(None if extra is None else trainer.held_bytes() + extra, saved, launches)


def twin(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own that lie in the model's memory."""
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    # As deepcopy's memo they stand for the copies of the model's own.
    return copy.deepcopy(model, {**shared})


def _row(
    level: str,
    tuner: str,
    part: str,
    mode: str,
    times: list[float],
    counts: Counts,
    floor: Floor | None,
    labels: dict[str, Any],
) -> Row:
    """A row of one part; what a step holds and launches stands with the whole step."""
    whole = part == STEP
    return Row.of_samples(
        times,
        level=level,
        method=tuner,
        phase=part,
        mode=mode,
        peak_bytes=counts.peak_bytes if whole else None,
        saved_bytes=counts.saved_bytes if whole else None,
        launches=counts.launches if whole else None,
        floor_us=None if floor is None else round(floor.us, 6),
        flops=None if floor is None else floor.flops,
        moved_bytes=None if floor is None else floor.moved_bytes,
        **labels,
    )
