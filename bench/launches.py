"""What one call launches, as the profiler sees it.

Apart from the timing, and after all of it: a profiler that was on once may slow launches down from then on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.cases import Case
from bench.methods import Layer, Method
from bench.phases import PHASES, Phase
from bench.timing import Call, nothing
from tests.testing import Operands

# What torch fills a tensor with one value by: the memset of the kernels' workspace among them.
FILL: Final = "fill"


def profile_case(case: Case, device: torch.device, methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Profile one eager call of each method in each phase.

    Returns:
        Entries of the results' `profiles`. `launches` counts kernels, on the CPU torch operators, nested ones
        too; None where the profiler saw none. `kernels` names them in order, and memory sets and copies.
    """
    ops = case.operands(device)
    counted = "kernel" if device.type == "cuda" else "cpu_op"
    profiles = []
    for method in methods:
        layer = method.build(ops, case.dropout)
        for name, phase in PHASES.items():
            before, call = _in_parts(phase, layer, ops)
            events = device_events(call, device, before)
            launches = sum(category == counted for category, _ in events)
            profiles.append(
                {
                    "method": method.name,
                    "phase": name,
                    **case.labels(),
                    "launches": launches or None,
                    "kernels": [kernel for _, kernel in events],
                }
            )
    return profiles


def _in_parts(phase: Phase, layer: Layer, ops: Operands) -> tuple[Call, Call]:
    """What a phase prepares, and what is timed of it."""
    prepared: list[Tensor | None] = []
    return (
        lambda: prepared.append(phase.prepare(layer, ops)),
        lambda: phase.timed(layer, ops, prepared.pop()),
    )


def device_events(call: Call, device: torch.device, before: Call = nothing) -> list[tuple[str, str]]:
    """(category, name) of what the second of two calls ran, in order of its start.

    Read from the trace file, whose categories tell kernels from memory sets and copies.

    Args:
        call: What is looked at.
        device: Where it runs.
        before: What runs ahead of each call, unseen.
    """
    activities = [ProfilerActivity.CPU]
    wanted = {"cpu_op"}
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        wanted = {"kernel", "gpu_memset", "gpu_memcpy"}
    before()
    call()  # compiles, and sets up libraries
    before()
    _synchronize(device)
    with profile(activities=activities) as recorded:
        call()
        _synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    seen = [event for event in events if event.get("cat") in wanted]
    return [(event["cat"], _short(event["name"])) for event in sorted(seen, key=lambda event: event["ts"])]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _short(name: str) -> str:
    """A kernel's name without its template arguments and namespaces."""
    if "FillFunctor" in name:
        return FILL
    return name.removeprefix("void ").split("<")[0].split("(")[0].split("::")[-1].strip() or name
