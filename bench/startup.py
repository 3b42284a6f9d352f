"""What is waited for before training runs: `python -m bench.startup`. Each time in a fresh process.

Imports are timed behind `import torch`, so that a package answers for its own part. First steps are timed
with empty caches of compiled code, then again with the caches that this left: imports, inputs and the layer
are made before the clock starts, so what the first step has beyond the second is compilation and loading.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from bench.cases import Case
from bench.counts import synchronize
from bench.layer import build_layer
from bench.level import Level, level
from bench.measure import on_record
from bench.methods import METHODS, UNDROPPED
from bench.process import python_path, run_process, why_ended
from bench.results import Results, Row
from bench.schedule import EVERY

PACKAGES: Final = ("fastlora", "peft", "loralib")

CASES: Final = {
    "cpu": Case(128, 1024, 1024, 16, torch.float32, torch.float32),
    "cuda": Case(2048, 4096, 4096, 16, torch.bfloat16, torch.float32),
}

# torch.compile takes half a minute on two busy cores.
_LONGEST_SECONDS: Final = 300

_IMPORT: Final = (
    "import time, torch; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
)
_STEPS: Final = "from bench.startup import first_steps; print(first_steps({!r}, {!r}, {!r}))"

# Where Triton and Inductor keep what they compiled.
_CACHES: Final = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def first_steps(method: str, device: str, threads: int) -> str:
    """JSON of the seconds that a method's first two steps take in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case, where = CASES[device], torch.device(device)
    layer = build_layer(METHODS[method], case, case.inputs(where))
    seconds = {}
    for step in ("first step", "second step"):
        start = time.perf_counter()
        layer.forward_backward()
        synchronize(where)
        seconds[step] = time.perf_counter() - start
    return json.dumps(seconds)


@level("startup", __doc__, 5, (*EVERY, UNDROPPED.name))
def main(level: Level) -> None:
    """Time imports, then first steps."""
    results, device, rounds = level.results, level.effort.device.type, level.effort.rounds
    here = [package for package in PACKAGES if find_spec(package) is not None]
    results.absent |= {name: f"{name} is not installed" for name in PACKAGES if name not in here}
    nothing = {"dtype": "", "adapter_dtype": "", "shape": {}, "dropout": 0.0}
    for package, seconds in import_seconds(here, rounds).items():
        add_row(results, seconds, method=package, phase="import", mode="behind torch", **nothing)
    case = CASES[device]
    for method in level.present(case.dtype):
        if why := case.why_not(method):
            results.absent[method.name] = why
            continue
        with on_record(results.problems, f"startup, {method.name}"):
            steps = _STEPS.format(method.name, device, torch.get_num_threads())
            for (mode, step), seconds in step_seconds(steps, rounds).items():
                add_row(results, seconds, method=method.name, phase=step, mode=mode, **case.labels())


def import_seconds(packages: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Of each package; its first import, which may compile bytecode, is not counted."""
    seconds: dict[str, list[float]] = {package: [] for package in packages}
    for _ in range(rounds + 1):
        for package, taken in seconds.items():
            taken.append(printed_by(_IMPORT.format(package), {}))
    return {package: taken[1:] for package, taken in seconds.items()}


def step_seconds(steps: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Of the first and second step, with cold and with warm caches."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for mode in ("cold caches", "warm caches"):
                caches = {name: str(Path(folder, name)) for name in _CACHES}
                for step, taken in printed_by(steps, caches).items():
                    seconds[mode, step].append(taken)
    return seconds


def printed_by(code: str, variables: Mapping[str, str]) -> Any:
    """The JSON in the last line that a fresh interpreter prints.

    Raises:
        RuntimeError: If it fails or hangs.
    """
    around = {**os.environ, "PYTHONPATH": python_path(), **variables}
    ended = run_process([sys.executable, "-c", code], around, _LONGEST_SECONDS)
    if ended.status != 0:
        raise RuntimeError(f"{code}: {why_ended(ended, _LONGEST_SECONDS)}")
    return json.loads(ended.output.splitlines()[-1])


def add_row(results: Results, seconds: Sequence[float], **names: Any) -> None:
    """A row of these times."""
    results.rows.append(Row.of_samples([1e6 * taken for taken in seconds], level="startup", **names))


if __name__ == "__main__":
    main()
