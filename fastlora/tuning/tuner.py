"""Measures, on this machine's GPU, which code is the fastest for given layers, and keeps the choices.

Each pass of each problem is a contest: the tile that would be taken by default, others, the persistent
kernels where they take it, and the vendor's matrix products. Every candidate is first proven in a process of
its own (`proofs`), then those that are right are timed in turn. Another than the default is taken only where
its time is below 0.97 of the default's, in the median of paired rounds. Over a packed W each candidate
unpacks it first, within its time; for few rows the kernel that unpacks inside the product competes too.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch

from fastlora.arguments import dtype_name
from fastlora.measuring.timing import quartiles, ratio
from fastlora.routes.architecture import architecture_of, multiprocessors
from fastlora.routes.choices import current_versions, key_of, own_file
from fastlora.routes.decide import reload_tables
from fastlora.routes.persistent import is_default, refusal
from fastlora.routes.plan import plan_for, vendor_won
from fastlora.tuning.candidates import candidates
from fastlora.tuning.choices_file import add_choices, check_place
from fastlora.tuning.contest import Contest
from fastlora.tuning.machine import Machine
from fastlora.tuning.packed_weights import unpacks_inside
from fastlora.tuning.proofs import prove
from fastlora.tuning.report import Found, Progress, Request, TuneReport
from fastlora.tuning.trial import DROPOUT, Candidate, Job
from fastlora_kernels.choice_content import (
    DIRECTIONS,
    KERNELS,
    PACKED,
    PERSISTENT,
    PLAIN,
    VENDOR,
    Choice,
    Choices,
    Key,
)

Times = Mapping[Candidate, Sequence[float]]

# What another candidate's time must be below, over the default's.
THRESHOLD: Final = 0.97

_REPEATS: Final = 200
_DRY_REPEATS: Final = 2


class Means(NamedTuple):
    """How candidates are proven and timed; tests and dry runs have others.

    Attributes:
        prove: For each candidate None if it is right, else why it is out.
        times: Microseconds of each candidate, one for each round.
    """

    prove: Callable[[Job, Sequence[Candidate]], list[str | None]]
    times: Callable[[Job, Sequence[Candidate]], Times]


def measured_times(job: Job, entrants: Sequence[Candidate]) -> Times:
    """By the GPU's own clock."""
    contest = Contest(
        torch.device(job.device), job.direction, job.problem, dropout=DROPOUT if job.dropout else 0.0
    )
    return contest.times(entrants)


def made_up_times(job: Job, entrants: Sequence[Candidate]) -> Times:
    """A dry run's, in which nothing is timed: each candidate is a little faster than the one before."""
    return {entrant: [100.0 - place, 101.0 - place] for place, entrant in enumerate(entrants)}


ON_THE_GPU: Final = Means(prove, measured_times)
DRY: Final = Means(prove, made_up_times)


def tune_for(
    requests: Iterable[Request],
    machine: Machine,
    *,
    minutes: float = 5.0,
    path: Path | None = None,
    dry: bool = False,
    progress: Progress = lambda done, total, text: None,
    means: Means | None = None,
) -> TuneReport:
    """Hold the contests and keep their choices in one file, at the end.

    Args:
        requests: What to tune for, those of most worth first.
        machine: Whose choices they are.
        minutes: No contest begins later.
        path: The file; None means the one that later runs read. A dry run writes only where it is told to.
        dry: Whether the CPU takes every step at tiny sizes, in Triton's interpreter and by a made-up clock.
        progress: Is told before each contest.
        means: How candidates are proven and timed.

    Returns:
        What was found. After an interrupt (KeyboardInterrupt) it holds what had been measured until then.

    Raises:
        OSError: If the choices cannot be written, before anything is measured; nothing is ever half-written.
        ValueError: If there is no place for the file, or the kernels do not run on the device.
    """
    start = time.monotonic()
    means = means or (DRY if dry else ON_THE_GPU)
    path = path if path is not None or dry else _place(machine)
    if path is not None:
        check_place(path)  # minutes of measuring would be lost
    contests = [(one, direction) for one in dict.fromkeys(requests) for direction in DIRECTIONS]
    report = TuneReport(machine.name, dry=dry)
    entries: dict[Key, Choice] = {}
    try:
        for done, (request, direction) in enumerate(contests):
            if time.monotonic() - start > 60 * minutes:
                report.skipped += [_words(*one) for one in contests[done:]]
                break
            progress(done, len(contests), _words(request, direction))
            if (held := _contest(request, direction, machine, dry, means, report)) is not None:
                entries[key_of(direction, request.problem, request.dropout)] = held
        progress(len(contests), len(contests), "")
    except KeyboardInterrupt:
        report.interrupted = True
    if path is not None and entries:
        _keep(entries, machine, path)
        report.path = path
    return report


def _contest(
    request: Request, direction: str, machine: Machine, dry: bool, means: Means, report: TuneReport
) -> Choice | None:
    """The choice of one pass; None if no candidate was right. What was found goes into the report."""
    default, entrants = _entrants(request, direction, machine)
    repeats = _DRY_REPEATS if dry else _REPEATS
    job = Job(machine.device.type, direction, request.problem, request.dropout, repeats)
    verdicts = dict(zip(entrants, means.prove(job, entrants), strict=True))
    out = {one: why for one, why in verdicts.items() if why is not None}
    report.failures += [f"{_words(request, direction)}, {_name(one)}: {why}" for one, why in out.items()]
    sound = [one for one in entrants if one not in out]
    if not sound:
        return None
    times = means.times(job, sound)
    medians = {one: quartiles(samples).median for one, samples in times.items()}
    base = default if default in sound else min(sound, key=medians.__getitem__)
    over = {one: ratio(times[one], times[base]).median for one in sound}
    fastest = min(sound, key=over.__getitem__)
    best = fastest if over[fastest] < THRESHOLD else base
    others = sorted((one for one in sound if one != best), key=medians.__getitem__)
    runner_up = f"{_name(others[0])}, {medians[others[0]]:.1f} us" if others else "none"
    gain = 1.0 if best == base else 1 / over[best]
    cost = getattr(request.problem, direction)()
    report.found.append(
        Found(
            request.problem,
            direction,
            request.dropout,
            medians.get(default),
            _name(best),
            medians[best],
            gain,
            machine.floor_us(cost, request.problem.dtype),
            {_name(one): round(medians[one], 3) for one in sound},
        )
    )
    code, tile = (best, None) if isinstance(best, str) else (KERNELS, best)
    return Choice(code, tile, medians[best], gain, runner_up)


def _entrants(request: Request, direction: str, machine: Machine) -> tuple[Candidate, list[Candidate]]:
    """The default, which is what would be taken without a file of choices, and all candidates, it first."""
    problem, dropout = request.problem, DROPOUT if request.dropout else 0.0
    architecture = architecture_of(machine.device)
    plan = plan_for(direction, architecture, problem, dropout=dropout, measured=False)
    tiles: list[Candidate] = [*candidates(plan.shape_class, direction, plan.tile)]
    if direction == "forward" and unpacks_inside(problem):
        tiles.insert(0, PACKED)
    if plan.shape_class == "wide" and not refusal(architecture, problem, dropout=dropout > 0):
        tiles.append(PERSISTENT)
    tiles.append(VENDOR)
    count = multiprocessors(machine.device)
    default = tiles[0]
    if not request.dropout and vendor_won(direction, architecture, problem) is not None:
        default = VENDOR
    elif is_default(direction, architecture, problem, count, dropout=dropout > 0, aligned=True):
        default = PERSISTENT
    return default, list(dict.fromkeys([default, *tiles]))


def _place(machine: Machine) -> Path:
    found = own_file(machine.name)
    if found is None:
        raise ValueError(
            'the choices have no place: set FASTLORA_TUNE_FILE, or pip install "fastlora-triton[tune]"'
        )
    return found


def _keep(entries: Mapping[Key, Choice], machine: Machine, path: Path) -> None:
    metadata = {**current_versions(), "torch": str(torch.__version__), **machine.facts()}
    metadata["when"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    add_choices(Choices(metadata, dict(entries)), path)
    reload_tables()


def _words(request: Request, direction: str) -> str:
    M, K, N, r, dtype, adapter, base = request.problem
    dtypes = dtype_name(dtype) if dtype == adapter else f"{dtype_name(dtype)}/{dtype_name(adapter)}"
    over = "" if base == PLAIN else f", over {base}"
    return f"{direction} {M}x{K}->{N} r{r}, {dtypes}{over}" + (", dropout" if request.dropout else "")


def _name(one: Candidate) -> str:
    if isinstance(one, str):
        return one
    return f"tile {one.block_m}x{one.block_n}x{one.block_k}, {one.num_warps} warps, {one.num_stages} stages"
