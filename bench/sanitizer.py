"""NVIDIA's compute-sanitizer over the kernels: accesses out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any, Final

import torch

from bench.layer import build_layer
from bench.methods import FASTLORA
from bench.process import Ended, child_command, not_run, outcome, run_process, surroundings, why_ended
from bench.settings import Setting

_PROGRAM: Final = "compute-sanitizer"
_FOUND_SOMETHING: Final = 86
_SUMMARY: Final = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")
_REFUSES: Final = re.compile(r"=+ (.*(?:not supported|Unable to|Failed to initialize).*)", re.IGNORECASE)


def run_sanitizer(tool: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Run `run_cases` under "memcheck" or "racecheck"; the output goes to TOOL.log in `folder`.

    Returns:
        A correctness step's result; `passed` is None, and the summary says why, where there is no such tool
        or it refuses the device.
    """
    program = find_sanitizer()
    if program is None:
        return not_run(f"no {_PROGRAM} on PATH, in CUDA_HOME, CUDA_PATH, /usr/local/cuda or NVIDIA's wheels")
    command = [program, "--tool", tool, "--error-exitcode", str(_FOUND_SOMETHING), "--print-limit", "20"]
    command += child_command("bench.sanitizer:run_cases", [], setting.device)
    # torch's cache of memory would hide what lies behind a tensor: one large block would hold many.
    variables = {**surroundings(setting.device), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ended = run_process(command, variables, setting.seconds["sanitizer"])
    (folder / f"{tool}.log").write_text(ended.output, encoding="utf-8")
    return read_sanitizer(ended, setting.seconds["sanitizer"])


def read_sanitizer(ended: Ended, seconds: float) -> dict[str, Any]:
    """What the tool's output says."""
    summary = _SUMMARY.search(ended.output)
    refusal = _REFUSES.search(ended.output)
    passed: bool | None = ended.status == 0 and summary is not None
    said = summary[1] if summary else why_ended(ended, seconds)
    if ended.status not in (0, None) and refusal and (summary is None or ended.status != _FOUND_SOMETHING):
        passed, said = None, f"not run: {refusal[1].strip()}"
    return outcome(passed, said, finished=ended.status is not None)


def find_sanitizer() -> str | None:
    """Where the program is; None where there is none."""
    homes = filter(None, [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"])
    folders = [f"{home}/{place}" for home in homes for place in ("bin", "compute-sanitizer")]
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    folders += sorted(str(path.parent) for path in wheels.rglob(_PROGRAM))
    return shutil.which(_PROGRAM, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def run_cases(setting: Setting) -> None:
    """Forward and backward of each case; their numbers are for the tests, and must only be finite."""
    torch.manual_seed(0)
    for case in setting.sanitized:
        for result in build_layer(FASTLORA, case, case.inputs(setting.device)).forward_backward():
            if not result.cpu().isfinite().all():
                raise AssertionError(f"{case}: a result is not finite")
        print(f"ran {case}", flush=True)  # noqa: T201
