"""What a tuning run is asked for, and what it found, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastlora.formula.cost import Problem
from fastlora.tables import Part, Shown, Table

# Tells of progress: passes done, passes in all, and what comes next.
Progress = Callable[[int, int, str], object]


class Request(NamedTuple):
    """A layer and batch to tune for.

    Attributes:
        problem: Shape and dtypes.
        dropout: Whether there is dropout.
    """

    problem: Problem
    dropout: bool = False


@dataclass(frozen=True)
class Found:
    """One pass of one problem.

    Attributes:
        problem: Shape and dtypes.
        direction: "forward" or "backward".
        dropout: Whether there is dropout.
        default_us: The default's median time in microseconds; None where it was not right.
        best: The code that is taken, in words.
        best_us: Its median time.
        gain: The default's time over the best's, the median of paired rounds.
        floor_us: The least time by the GPU's datasheet; None for an unknown GPU.
        times_us: The median time of each candidate that was right, in words; microseconds.
    """

    problem: Problem
    direction: str
    dropout: bool
    default_us: float | None
    best: str
    best_us: float
    gain: float
    floor_us: float | None
    times_us: dict[str, float]


@dataclass
class TuneReport(Shown):
    """Everything that a run of `fastlora.tune` found; `str()` of it is a table, in a notebook too.

    Attributes:
        device: The GPU's name.
        found: The passes that were measured.
        failures: The candidates that were not right, hung or failed, a line each; they are never used.
        skipped: The passes that there was no time for.
        untuned: The layers that take other code, such as experts, by name.
        path: The file that holds the choices; None where none was written.
        interrupted: Whether the run was interrupted: what had been measured is kept.
        dry: Whether it was a dry run, whose times mean nothing.
    """

    device: str
    found: list[Found] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    untuned: list[str] = field(default_factory=list)
    path: Path | None = None
    interrupted: bool = False
    dry: bool = False

    def parts(self) -> Iterator[Part]:
        """The table of passes, then what failed, what was left out, and where the choices are."""
        header = ("M", "K", "N", "r", "dtypes", "pass", "default us", "best us", "gain", "floor us", "best")
        if self.dry:
            yield "a dry run: these times mean nothing"
        yield Table(header, [_row(one) for one in self.found], 0)
        for title, lines in (
            ("not right, and not used", self.failures),
            ("left out", self.skipped),
            ("not tuned for: they take other code", self.untuned),
        ):
            if lines:
                yield ""
                yield f"{title}:"
                yield from (f"  {line}" for line in lines)
        yield ""
        if self.interrupted:
            yield "interrupted: what had been measured is kept"
        yield f"choices in {self.path}" if self.path else "no file was written"

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "device": self.device,
            "found": [
                {
                    **dict(zip("MKNr", one.problem[:4], strict=True)),
                    "dtype": _name(one.problem.dtype),
                    "adapter_dtype": _name(one.problem.adapter_dtype),
                    "base": one.problem.base,
                    "pass": one.direction,
                    "dropout": one.dropout,
                    "default_us": one.default_us,
                    "best": one.best,
                    "best_us": one.best_us,
                    "gain": one.gain,
                    "floor_us": one.floor_us,
                    "times_us": one.times_us,
                }
                for one in self.found
            ],
            "failures": self.failures,
            "skipped": self.skipped,
            "untuned": self.untuned,
            "path": None if self.path is None else str(self.path),
            "interrupted": self.interrupted,
            "dry": self.dry,
        }


def _row(one: Found) -> tuple[str, ...]:
    M, K, N, r, dtype, adapter, base = one.problem
    dtypes = _name(dtype) if dtype == adapter else f"{_name(dtype)}/{_name(adapter)}"
    if base != "plain":
        dtypes += f", {base}"
    return (
        *(f"{size:,}" for size in (M, K, N, r)),
        dtypes,
        one.direction + (", dropout" if one.dropout else ""),
        "-" if one.default_us is None else f"{one.default_us:.1f}",
        f"{one.best_us:.1f}",
        f"{one.gain:.2f}",
        "-" if one.floor_us is None else f"{one.floor_us:.1f}",
        one.best,
    )


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
