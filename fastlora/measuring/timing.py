"""The timing core: times methods in turn in one process; medians, quartiles, and ratios round by round."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

import torch

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# The part that is all the others together.
WHOLE: Final = "step"

# Warm-up ends when a round takes as long as the one before it, within this share.
_STEADY: Final = 0.05


def nothing() -> None:
    """The call that stands for none."""


class Quartiles(NamedTuple):
    """The middle of a sample: a quarter of it lies below `q25`, a quarter above `q75`."""

    q25: float
    median: float
    q75: float


class Timer(Protocol):
    """Times the body of each `with` block; reads the times later, so that nothing waits in between.

    Attributes:
        leads_in: Whether what is timed must run once untimed directly before.
    """

    leads_in: ClassVar[bool]

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def microseconds(self) -> list[float]:
        """One time a block, in order."""
        ...


class CpuTimer:
    """The host's clock, for code that is done when it returns.

    Code that ran before has after-effects: threads of another OpenMP runtime that still spin, memory returned
    to the system, a cold instruction cache. An untimed lead-in run absorbs them. Without it, a method
    measured after torch.compile's code took up to twice its own time.
    """

    leads_in: ClassVar[bool] = True

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds.append(time.perf_counter() - self._start)

    def microseconds(self) -> list[float]:
        """One time a block."""
        return [1e6 * seconds for seconds in self._seconds]


class CudaTimer:
    """Events on the current stream: the GPU's own clock.

    The host does not wait for a block to end. It runs ahead, as in training, so that the launch of one block
    hides behind the one before it; where the host is slower than the GPU, the gaps count.
    """

    leads_in: ClassVar[bool] = False

    def __init__(self) -> None:
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        self._events.append(events)
        events[0].record()

    def __exit__(self, *_: object) -> None:
        self._events[-1][1].record()

    def microseconds(self) -> list[float]:
        """One time a block; waits until the GPU has done them all."""
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in self._events]


def timer_for(device: torch.device) -> type[CpuTimer] | type[CudaTimer]:
    """The timer of a device's clock."""
    return CudaTimer if device.type == "cuda" else CpuTimer


class Work(NamedTuple):
    """What is timed of one competitor.

    Attributes:
        parts: Run in order; their times, and that of all of them, are taken.
        before: Runs ahead of them each time, outside the measurement.
    """

    parts: Mapping[str, Call]
    before: Call = nothing

    @classmethod
    def of(cls, call: Call, before: Call = nothing) -> Work:
        """One call, without parts of its own."""
        return cls({WHOLE: call}, before)

    def __call__(self) -> None:
        """All of it, once and untimed."""
        self.before()
        for run in self.parts.values():
            run()


def interleaved(
    works: Mapping[Key, Work], rounds: int, new_timer: Callable[[], Timer]
) -> dict[Key, dict[str, list[float]]]:
    """Time every work once a round, so that a change of clocks or load touches all of them alike.

    The order turns round after each round: no work always runs behind the same one.

    Args:
        works: By name.
        rounds: How often each is timed.
        new_timer: Makes a timer.

    Returns:
        Microseconds by name and part, those of all parts under WHOLE; one for each round.
    """
    timers = {name: {part: new_timer() for part in {WHOLE: 0, **work.parts}} for name, work in works.items()}
    order = list(works)
    for _ in range(rounds):
        for name in order:
            work, own = works[name], timers[name]
            if own[WHOLE].leads_in:
                work()
            work.before()
            with own[WHOLE]:
                for part, run in work.parts.items():
                    with contextlib.nullcontext() if part == WHOLE else own[part]:
                        run()
        order.reverse()
    return {name: {part: timer.microseconds() for part, timer in own.items()} for name, own in timers.items()}


def warm_up(works: Mapping[Key, Work], most_rounds: int, new_timer: Callable[[], Timer]) -> int:
    """Run the works in turn until a round takes as long as the one before; how many rounds it took."""
    last = float("inf")
    for done in range(1, most_rounds + 1):
        total = _one_round(works, new_timer)
        if abs(total - last) <= _STEADY * last < float("inf"):
            return done
        last = total
    return most_rounds


def rounds_within(
    seconds: float, works: Mapping[Key, Work], new_timer: Callable[[], Timer], *, fewest: int, most: int
) -> int:
    """How many rounds of the works take about so many seconds, by the time of one more; within the bounds."""
    one = _one_round(works, new_timer)
    return max(fewest, min(most, int(1e6 * seconds / max(one, 1.0))))


def _one_round(works: Mapping[Key, Work], new_timer: Callable[[], Timer]) -> float:
    return sum(times[WHOLE][0] for times in interleaved(works, 1, new_timer).values())


def captured(call: Call) -> Call:
    """The call's GPU work as a CUDA graph: what is returned replays it, with no Python between its kernels.

    The call must have run before, so that nothing is compiled or loaded during the capture.

    Args:
        call: Reads and writes the same tensors each time.
    """
    (replay,) = captured_in_turn(call)
    return replay


def captured_in_turn(*calls: Call) -> list[Call]:
    """Each call as a CUDA graph of its own, to be replayed in this order: later ones use what earlier left.

    All are captured on one stream: autograd runs a backward pass on the stream of its forward pass, and work
    on any other stream would break the capture.

    Args:
        calls: As for `captured`.
    """
    # Capture demands that libraries have set up their workspaces on a stream other than the default one.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    replays: list[Call] = []
    for call in calls:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            call()
        replays.append(graph.replay)
    return replays


def quartiles(samples: Sequence[float]) -> Quartiles:
    """Median and quartiles, by linear interpolation between the samples.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("samples must hold at least one time; got none")
    if len(samples) == 1:
        return Quartiles(samples[0], samples[0], samples[0])
    return Quartiles(*statistics.quantiles(samples, n=4, method="inclusive"))


def ratio(over: Sequence[float], under: Sequence[float]) -> Quartiles:
    """Quartiles of over[i] / under[i]: each pair was timed in the same round.

    Raises:
        ValueError: If the samples are not of the same rounds.
    """
    return quartiles([a / b for a, b in zip(over, under, strict=True)])
