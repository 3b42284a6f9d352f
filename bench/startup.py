"""What is waited for before training runs: `python -m bench.startup`. Each time in a fresh process.

Imports are timed behind `import torch`, so that a package answers for its own part. First steps are timed
with empty caches of compiled code, then again with the caches that this left.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.bars import draw_bars
from bench.environment import ROOT
from bench.first_step import CASES
from bench.level import add_device, finish, fresh_results, level_parser, prepare_torch
from bench.methods import METHODS
from bench.problems import on_record
from bench.process import run_process
from bench.results import Results, Row

LEVEL: Final = "startup"
ROUNDS: Final = 5
PACKAGES: Final = ("fastlora", "peft", "loralib")

# torch.compile takes half a minute on two busy cores.
_LONGEST_SECONDS: Final = 300

_IMPORT: Final = (
    "import time, torch; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
)

# Where Triton and Inductor keep what they compiled.
_CACHES: Final = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time imports, then first steps; the exit status, 1 if a process failed."""
    parser = level_parser(LEVEL, __doc__.splitlines()[0], ROUNDS)
    add_device(parser, list(METHODS))
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    device = prepare_torch(options)
    results = fresh_results(LEVEL, arguments, device, options.commit)
    results.rows += import_rows(options.rounds, results)
    methods = [METHODS[name] for name in options.methods]
    case = CASES[options.device]
    for method in methods:
        why = method.why_absent(device, case.dtype) or method.why_not(case)
        if why is not None:
            results.absent[method.name] = why
            continue
        child = [method.name, "--device", options.device]
        child += [] if options.threads is None else ["--threads", str(options.threads)]
        with on_record(results.problems, f"{LEVEL}, {method.name}"):
            results.rows += first_step_rows(method.name, child, options.rounds, case.labels())
    return finish(results, options, draw_bars)


def import_rows(rounds: int, results: Results) -> Iterator[Row]:
    """A row for each package; the first import of all, which may compile bytecode, is not counted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for package in PACKAGES:
        if find_spec(package) is None:
            results.absent[package] = f"{package} is not installed"
    packages = [package for package in PACKAGES if package not in results.absent]
    for number in range(rounds + 1):
        for package in packages:
            *_, line = output_of(["-c", _IMPORT.format(package)], {})
            if number:
                seconds[package].append(float(line))
    case = {"dtype": "", "adapter_dtype": "", "shape": {}, "dropout": 0.0}
    for package, times in seconds.items():
        yield _row(package, "import", "behind torch", times, case)


def first_step_rows(method: str, child: list[str], rounds: int, labels: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of the first and second step, with cold and with warm caches."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for mode in ("cold caches", "warm caches"):
                caches = {name: str(Path(folder, name)) for name in _CACHES}
                *_, line = output_of(["-m", "bench.first_step", *child], caches)
                for step, taken in json.loads(line).items():
                    seconds[mode, step].append(taken)
    for (mode, step), times in seconds.items():
        yield _row(method, step, mode, times, labels)


def output_of(arguments: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """The lines that a fresh interpreter prints.

    Raises:
        RuntimeError: If it fails or hangs.
    """
    roots = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    surroundings = {**os.environ, "PYTHONPATH": roots, **variables}
    ended = run_process([sys.executable, *arguments], surroundings, _LONGEST_SECONDS)
    lines = ended.output.splitlines()
    if ended.status != 0 or not lines:
        raise RuntimeError(
            f"{' '.join(arguments[:2])} ended with status {ended.status}: {' '.join(lines[-1:])}"
        )
    return lines


def _row(method: str, phase: str, mode: str, seconds: Sequence[float], labels: Mapping[str, Any]) -> Row:
    return Row.of_samples(
        [1e6 * taken for taken in seconds],
        level=LEVEL,
        method=method,
        phase=phase,
        mode=mode,
        peak_bytes=None,
        launches=None,
        floor_us=None,
        **labels,
    )


if __name__ == "__main__":
    sys.exit(main())
