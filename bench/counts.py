"""What one call holds in memory, and what it launches, as the profiler sees it.

Counted after all timing: a profiler that was on once may slow launches down from then on.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases import Case
from bench.layer import build_layer, phase_works
from bench.methods import Method
from fastlora.measuring.timing import Work

# What torch fills a tensor with one value by: the memset of the kernels' workspace among them.
FILL: Final = "fill"


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """The most device memory held during the work beyond what was held before it.

    Output, gradients, what is saved between them, temporaries; not the operands. None on the CPU, where torch
    does not count (see `host_peak_bytes`).
    """
    if device.type != "cuda":
        return None
    work.before()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for run in work.parts.values():
        run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def host_peak_bytes(work: Work) -> int:
    """As `peak_bytes` on the CPU, from the profiler's list of what was allocated and freed."""
    work()
    work.before()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        for run in work.parts.values():
            run()
    changes = [event for event in _trace(recorded) if event.get("name") == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in changes if event["args"].get("Device Type") == 0]
    return max(itertools.accumulate(sizes), default=0)


def launches(events: Iterable[tuple[str, str]]) -> int:
    """How many of the events are kernels, on the CPU torch operators, nested ones too."""
    return sum(category in ("kernel", "cpu_op") for category, _ in events)


def profile_case(case: Case, device: torch.device, methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Entries of the results' `profiles`, one eager call of each method in each phase.

    `launches` is None where the profiler saw none; `kernels` names them in order, and memory sets and copies.
    """
    inputs, profiles = case.inputs(device), []
    for method in methods:
        for phase, work in phase_works([build_layer(method, case, inputs)]).items():
            events = device_events(work, device)
            entry = {"launches": launches(events) or None, "kernels": [name for _, name in events]}
            profiles.append({"method": method.name, "phase": phase, **case.labels(), **entry})
    return profiles


def device_events(work: Work, device: torch.device) -> list[tuple[str, str]]:
    """(category, name) of what the second of two runs of the work ran, in order of its start.

    Read from the trace file, whose categories tell kernels from memory sets and copies.
    """
    activities, wanted = [ProfilerActivity.CPU], {"cpu_op"}
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        wanted = {"kernel", "gpu_memset", "gpu_memcpy"}
    work()  # compiles, and sets up libraries
    work.before()
    synchronize(device)
    with profile(activities=activities, acc_events=True) as recorded:
        for run in work.parts.values():
            run()
        synchronize(device)
    return [(one["cat"], _short(one["name"])) for one in _trace(recorded) if one.get("cat") in wanted]


def _trace(recorded: Any) -> list[dict[str, Any]]:
    """The events of a profile, in order of their start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        return sorted(events, key=lambda event: event.get("ts", 0))


def synchronize(device: torch.device) -> None:
    """Wait for the device: what went wrong on it shows here."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _short(name: str) -> str:
    """A kernel's name without its template arguments and namespaces."""
    if "FillFunctor" in name:
        return FILL
    return name.removeprefix("void ").split("<")[0].split("(")[0].split("::")[-1].strip() or name
