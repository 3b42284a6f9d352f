"""What the levels have in common: options, the header, and where results go."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch

from bench.ceilings import Ceilings, keep_ceilings
from bench.groups import columns
from bench.methods import Method, present
from bench.pictures import draw
from bench.results import Results
from bench.settings import Effort, effort_on
from bench.tables import parts, say
from fastlora.tables import as_text

POSITIVE: Final = click.IntRange(min=1)


# Of every command that measures.
COMMIT: Final = click.option("--commit", help="The commit, where the sources are a copy without its .git.")


def several(
    option: str, names: Iterable[str], default: Sequence[str] = (), **more: Any
) -> Callable[..., Any]:
    """An option that takes some of the names: `--methods peft --methods fastlora`."""
    choice = click.Choice(list(names))
    return click.option(
        option, type=choice, multiple=True, default=default, show_default=bool(default), **more
    )


@dataclass(frozen=True)
class Level:
    """What a level is given to measure with, and the results that it fills.

    Attributes:
        methods: The names of those asked for.
    """

    name: str
    results: Results
    effort: Effort
    methods: Sequence[str]

    def ceilings(self, dtype: torch.dtype) -> Ceilings:
        """What the device reaches at best in a dtype, which is put on record."""
        return keep_ceilings(self.results, self.effort, [dtype])[dtype]

    def present(self, dtype: torch.dtype) -> list[Method]:
        """The methods asked for that can run; why the others cannot is put on record."""
        here, absent = present(self.methods, self.effort.device, dtype)
        self.results.absent |= absent
        return here


def level(
    name: str, help: str | None, rounds: int, methods: Sequence[str], chosen: Sequence[str] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function that measures: it gets a `Level`, and the options of its own.

    Of the methods, all that there are, those chosen are compared unless others are asked for; none for all.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    file = click.Path(path_type=Path)
    options = (
        COMMIT,
        several("--methods", methods, chosen or methods),
        click.option("--threads", type=POSITIVE, help="Threads that torch uses (default: its own choice)."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default=here, show_default=True),
        click.option(
            "--rounds", type=POSITIVE, default=rounds, show_default=True, help="Of timing, at most."
        ),
        click.option("--picture", type=file, help="Where a PNG of them is written."),
        click.option("--json", type=file, help="Where the results are written."),
    )

    def make(measure: Callable[..., None]) -> click.Command:
        run: Any = functools.partial(_run, name, measure)
        run.__click_params__ = getattr(measure, "__click_params__", [])
        for option in options:
            run = option(run)
        return click.command(name, help=help)(run)

    return make


def _run(
    name: str,
    measure: Callable[..., None],
    *,
    json: Path | None,
    picture: Path | None,
    rounds: int,
    device: str,
    threads: int | None,
    methods: Sequence[str],
    commit: str | None,
    **own: Any,
) -> None:
    """Measure and print the tables; exits with status 1 if anything went wrong."""
    if threads is not None:
        torch.set_num_threads(threads)
    # As the MNIST job does: Adam's mean of a gradient that has become zero falls until it is denormal, and
    # denormals cost the CPU several times the whole step.
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    where = torch.device(device)
    results = Results.begin(f"bench.{name}", where, commit, json)
    measure(Level(name, results, effort_on(where, rounds), methods), **own)
    results.save()
    say(as_text(parts(results)))
    if picture is not None:
        draw(columns(results.rows), picture, results.environment.in_words)
    sys.exit(1 if results.failures() else 0)
