"""Correctness before speed: every step in a process of its own, with a time limit.

Steps of one lane run one after the other, the lanes side by side: tests and compilation keep many processors
busy, the soaks the GPU, and a sanitizer mostly itself.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench.numeric_tests import run_tests
from bench.process import outcome, run_child
from bench.sanitizer import run_sanitizer
from bench.settings import Setting
from bench.tuning import compile_candidates

Step = Callable[[Setting, Path], dict[str, Any]]

# A soak's own time does not count start-up and compilation.
_START_UP_SECONDS: Final = 60


def _soak(how: str, setting: Setting, folder: Path) -> dict[str, Any]:
    return run_child("bench.soak:soak", [how], setting.device, setting.soak_seconds + _START_UP_SECONDS)


# What the tuning needs compiled, while there are processors to spare.
CANDIDATES: Final = "candidates"

# In these a kernel that waits for ever shows as a step that did not finish.
SOAKS: Final = {"soak": "repeat", "graph": "graph", "streams": "streams"}

LANES: Final[tuple[dict[str, Step], ...]] = (
    {"tests": run_tests},
    {name: functools.partial(_soak, how) for name, how in SOAKS.items()},
    {tool: functools.partial(run_sanitizer, tool) for tool in ("memcheck", "racecheck")},
    {CANDIDATES: lambda setting, folder: compile_candidates(setting.device)},
)


def run_steps(
    setting: Setting, folder: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the steps that are wanted by name, their logs in `folder`; give (name, result) as each ends."""
    lanes = [{name: step for name, step in lane.items() if wanted(name)} for lane in LANES]
    ended: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def run_lane(lane: dict[str, Step]) -> None:
        for name, step in lane.items():
            try:
                result = step(setting, folder)
            except Exception as error:  # on record as the step's; the others go on
                result = outcome(False, f"{type(error).__name__}: {error}", 0.0, finished=False)
            ended.put((name, result))

    for lane in lanes:
        threading.Thread(target=run_lane, args=(lane,), daemon=True).start()
    for _ in range(sum(map(len, lanes))):
        yield ended.get()
