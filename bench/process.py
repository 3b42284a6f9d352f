"""Parts of a run in processes of their own: a kernel that waits for ever can then be ended.

Such a process is `python -m bench.process bench.soak:soak cuda '["graph"]'`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

import fastlora
from bench.environment import ROOT
from bench.settings import SETTINGS


class Ended(NamedTuple):
    """A process that is over; `status` is None where it was ended for its time."""

    status: int | None
    output: str
    seconds: float


def run_process(command: Sequence[str], surroundings: dict[str, str], seconds: float) -> Ended:
    """Run to the end, or end it with everything it started after `seconds`."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    status: int | None = None
    try:
        output, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return Ended(status, output, time.monotonic() - start)


def run_child(target: str, arguments: Sequence[Any], device: torch.device, seconds: float) -> dict[str, Any]:
    """Call a function of this folder, such as "bench.soak:soak", with the device's setting and the arguments.

    Returns:
        A correctness step's result; where the process gave none, or was ended for its time, one that has
        not passed and says why.
    """
    ended = run_process(child_command(target, arguments, device), surroundings(device), seconds)
    finished = ended.status is not None
    for line in reversed(ended.output.splitlines()):
        # A line that was cut off as its program was ended is none.
        with contextlib.suppress(json.JSONDecodeError):
            if line.startswith("{"):
                return {**json.loads(line), "finished": finished}
    return outcome(False, why_ended(ended, seconds), finished=finished)


def child_command(target: str, arguments: Sequence[Any], device: torch.device) -> list[str]:
    """What runs `main` below."""
    return [sys.executable, "-m", "bench.process", target, device.type, json.dumps(list(arguments))]


def main(target: str, device: str, arguments: str) -> None:
    """Call a function with the device's setting and the arguments; print its result as a line of JSON."""
    module, _, name = target.partition(":")
    setting = SETTINGS[device]
    with fastlora.set_backend(setting.backend):
        found = getattr(importlib.import_module(module), name)(setting, *json.loads(arguments))
    print(json.dumps(found))  # noqa: T201


def outcome(passed: bool | None, summary: str, *, finished: bool = True, **more: Any) -> dict[str, Any]:
    """A correctness step's result; `passed` is None where it did not run."""
    return {"passed": passed, "finished": finished, "summary": summary, **more}


def not_run(why: str) -> dict[str, Any]:
    """The result of a correctness step that cannot run here."""
    return outcome(None, f"not run: {why}")


def why_ended(ended: Ended, seconds: float) -> str:
    """Why a process gave no result, in words."""
    if ended.status is None:
        return f"not finished after {seconds:.0f} s"
    lines = [line for line in ended.output.splitlines() if line.strip()]
    return f"exit status {ended.status}: {lines[-1] if lines else 'no output'}"


def python_path() -> str:
    """PYTHONPATH for a process that imports this checkout."""
    return os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])


def surroundings(device: torch.device) -> dict[str, str]:
    """Environment variables for a process that works on the device."""
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if device.type == "cpu" else {}
    # Deterministic algorithms fill buffers with NaN; older torch then refuses cuBLAS without the latter.
    own = {"PYTHONPATH": python_path(), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**os.environ, **own, **on_cpu}


if __name__ == "__main__":
    main(*sys.argv[1:])
