"""Proves candidates in processes of their own: one that hangs or crashes is out, and the others go on."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Final

from fastlora.tuning.trial import Candidate, Job

COMMAND: Final = (sys.executable, "-m", "fastlora.tuning.trial")
# Until a candidate's line: it is compiled and run. Before the first, a process starts and makes its inputs.
_SECONDS: Final = 60.0
_START_SECONDS: Final = 120.0


def prove(
    job: Job,
    candidates: Sequence[Candidate],
    *,
    command: Sequence[str] = COMMAND,
    seconds: float = _SECONDS,
    start_seconds: float = _START_SECONDS,
) -> list[str | None]:
    """For each candidate None if it is right, else why it is out.

    Args:
        job: What they are proven for.
        candidates: Tiles, and names of other code: VENDOR, PERSISTENT.
        command: What proves; for tests.
        seconds: The most that a candidate may take.
        start_seconds: The most that a process may take to start, beside its first candidate.
    """
    verdicts: list[str | None] = []
    while len(verdicts) < len(candidates):
        verdicts += _one_process(job, candidates[len(verdicts) :], command, seconds, start_seconds)
    return verdicts


def _one_process(
    job: Job, candidates: Sequence[Candidate], command: Sequence[str], seconds: float, start_seconds: float
) -> list[str | None]:
    """The verdicts up to the first candidate that ended its process, which is at least one."""
    process = subprocess.Popen(
        [*command, job.dumps(list(candidates))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_surroundings(job.device),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines, complaints = _lines_of(process.stdout), _lines_of(process.stderr)
    verdicts: list[str | None] = []
    limit = start_seconds + seconds
    try:
        while len(verdicts) < len(candidates):
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                return [*verdicts, f"not finished after {limit:.0f} s"]
            if line is None:
                return [*verdicts, _why_ended(process, complaints)]
            if line.startswith("{"):
                verdicts.append(json.loads(line)["failed"])
                limit = seconds
    finally:
        process.kill()
        process.wait()
    return verdicts


def _lines_of(stream: IO[str]) -> queue.Queue[str | None]:
    """A stream's lines as they come, None at its end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _why_ended(process: subprocess.Popen[str], complaints: queue.Queue[str | None]) -> str:
    status, said = process.wait(), ""
    while (line := complaints.get()) is not None:
        said = line.strip() or said
    return f"its process ended with status {status}: {said[:200] or 'it said nothing'}"


def _surroundings(device: str) -> dict[str, str]:
    """Environment variables of a process that proves on a device."""
    # Deterministic algorithms want it of cuBLAS.
    variables = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FASTLORA_TUNE": "0"}
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return variables
