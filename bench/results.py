"""The results file: one schema for every bench, written as the run goes on.

    {schema, device, versions, commit, modified, sources, command, started,
     correctness: {step: {passed, finished, summary, seconds, ...}}, ceilings,
     other_ceilings: [...], absent: {method: why}, left_out: [{method, why, CASE}], problems: [...],
     checks: [{method, errors, failure, CASE}],
     profiles: [{method, phase, CASE, launches, kernels}], rows: [{the fields of Row}]}

    CASE: dtype, adapter_dtype, shape: {M, K, N, r}, dropout, bias

Times are microseconds of one call. The i-th samples of all methods of one case, phase and mode come from one
round, so their quotients are ratios pair by pair. `peak_bytes` and `launches` are those of one eager call.
Methods without adapters are measured in every case beside the others; its rank, adapter dtype and dropout
stand in their rows too. A method that cannot run at all is `absent`; one that cannot run a case is `left_out`
there. A correctness step whose `passed` is null did not run; its summary says why.

What a level does not measure is null: `floor_us` where there is no floor; `saved_bytes`, which the forward
pass keeps for backward; `flops` and `moved_bytes`, which the floor is made of; `model`, the name of a whole
net, whose `shape` then has sizes of its own; `optimizer`, which its step ends with. `ceilings` are of one
dtype, that of most rows; `other_ceilings` of those that other rows have.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import torch

from bench.environment import Environment, environment
from fastlora.adapter_files.drafts import write_together
from fastlora.measuring.timing import quartiles

SCHEMA: Final = 1

# In the file they come last, a line for each entry.
_LISTS: Final = ("left_out", "checks", "profiles", "rows")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method's times in one case, phase and mode; see the schema above."""

    level: str
    method: str
    phase: str
    dtype: str
    adapter_dtype: str
    shape: dict[str, int]
    dropout: float
    mode: str
    median_us: float
    q25_us: float
    q75_us: float
    peak_bytes: int | None = None
    launches: int | None = None
    floor_us: float | None = None
    samples_us: list[float]
    bias: bool = False
    base: str = ""
    saved_bytes: int | None = None
    flops: int | None = None
    moved_bytes: int | None = None
    model: str | None = None
    optimizer: str | None = None

    @classmethod
    def of_samples(cls, samples_us: Sequence[float], **fields: Any) -> Row:
        """The row of these samples; `fields` are all the others but the quartiles."""
        q25, median, q75 = (round(value, 3) for value in quartiles(samples_us))
        samples = [round(sample, 3) for sample in samples_us]
        return cls(median_us=median, q25_us=q25, q75_us=q75, samples_us=samples, **fields)

    @property
    def labels(self) -> dict[str, Any]:
        """The case."""
        names = ("dtype", "adapter_dtype", "shape", "dropout", "bias", "base")
        return {name: getattr(self, name) for name in names}


@dataclass
class Results:
    """What a run has found so far; see the schema above."""

    environment: Environment
    command: str
    started: str
    correctness: dict[str, dict[str, Any]] = field(default_factory=dict)
    ceilings: dict[str, Any] | None = None
    other_ceilings: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    path: Path | None = field(default=None, compare=False)  # where they are saved, if anywhere

    @classmethod
    def begin(
        cls, module: str, device: torch.device, commit: str | None = None, path: Path | None = None
    ) -> Results:
        """Results with nothing in them yet, of the command that runs in this process."""
        command = shlex.join(["python", "-m", module, *map(_shown, sys.argv[1:])])
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(environment(device, commit), command, started, path=path)

    def ceilings_of(self, dtype: str) -> dict[str, Any] | None:
        """The ceilings that rows of a dtype are held to; None where none were measured."""
        measured = [self.ceilings, *self.other_ceilings]
        return next((found for found in measured if found and found["matmul_dtype"] == dtype), None)

    def methods_of(self, labels: dict[str, Any]) -> set[str]:
        """The methods with rows of a case; none if it has not been measured."""
        return {row.method for row in self.rows if row.labels == labels}

    def has_profiles(self, labels: dict[str, Any]) -> bool:
        """Whether the launches of a case were counted."""
        return any(labels.items() <= profile.items() for profile in self.profiles)

    def add_profiles(self, profiles: list[dict[str, Any]]) -> None:
        """Keep profiles, and note their launches in the rows that they belong to."""
        self.profiles += profiles
        for profile in profiles:
            for i, row in enumerate(self.rows):
                if {"method": row.method, "phase": row.phase, **row.labels}.items() <= profile.items():
                    self.rows[i] = replace(row, launches=profile["launches"])

    def failures(self) -> list[str]:
        """What went wrong, a line each; empty for a run to be trusted."""
        steps = [
            f"{name}: {one['summary']}" for name, one in self.correctness.items() if one["passed"] is False
        ]
        checks = [f"{check['method']}: {check['failure']}" for check in self.checks if check["failure"]]
        return [*steps, *checks, *self.problems]

    def save(self) -> None:
        """Replace the file, if any, in one step: a run that is killed leaves the last complete one.

        Raises:
            AdapterError: If the path is a FIFO, a socket or a device.
        """
        if self.path is not None:
            write_together([(self.path, self.as_text().encode())])

    def as_text(self) -> str:
        """JSON with a line for each entry of a list, so that a difference between two files can be read."""
        own = {name: value for name, value in vars(self).items() if name not in ("environment", "path")}
        content = {"schema": SCHEMA, **self.environment._asdict(), **own, "rows": map(vars, self.rows)}
        lists = {name: ",".join(f"\n    {json.dumps(one)}" for one in content.pop(name)) for name in _LISTS}
        parts = [json.dumps(content, indent=2).removesuffix("\n}")]
        parts += [f'  "{name}": [{lines}\n  ]' for name, lines in lists.items()]
        return ",\n".join(parts) + "\n}\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file back.

        Raises:
            ValueError: If it is no results file of this schema.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"{path} must be a results file of schema {SCHEMA}")
        del content["schema"]
        here = Environment(**{name: content.pop(name) for name in Environment._fields})
        return cls(here, **{**content, "rows": [Row(**row) for row in content["rows"]]}, path=path)


def _shown(argument: str) -> str:
    """An argument of the command, of an absolute path the last name alone: the file is for other machines."""
    option, sign, value = argument.rpartition("=")
    return option + sign + (Path(value).name if Path(value).is_absolute() else value)


def resumed(fresh: Results) -> Results:
    """The results to go on with: the file's where device, versions and sources are the same, else `fresh`.

    A file that does not fit, or cannot be read, is set aside as *.old.json.
    """
    path = fresh.path
    if path is not None and path.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            earlier = Results.read(path)
            if earlier.environment.matches(fresh.environment):
                return earlier
        path.replace(path.with_suffix(".old.json"))
    return fresh
