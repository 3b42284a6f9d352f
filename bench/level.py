"""What the levels have in common: options, the header, and where results go."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import click
import torch
from rich.console import Console

from bench.ceilings import Ceilings, measure_ceilings
from bench.environment import environment
from bench.methods.lorafusion import CHECKOUT
from bench.pictures import draw_groups
from bench.results import Results
from bench.settings import Effort, effort_on
from bench.step import ADAMS
from bench.tables import print_header, print_tables

# Of the widest table: folded it cannot be read, and a file has no width.
_TABLE_WIDTH: Final = 170

POSITIVE: Final = click.IntRange(min=1)


class Names(click.ParamType):
    """Some of the names, with commas or spaces between them."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """A list of them."""
        names = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        for name in names:
            if name not in self.known:
                self.fail(f"must be of {', '.join(self.known)}; got {name}", param, ctx)
        return names


class Command(click.Command):
    """A command whose options for names take several words: `--methods peft fastlora`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the words behind an option for names."""
        several = {opt for p in self.params if isinstance(p.type, Names) for opt in p.opts}
        joined: list[str] = []
        taking = False
        for word in args:
            if taking and not word.startswith("-"):
                joined[-1] = f"{joined[-1]} {word}".strip()
                continue
            taking = word in several
            joined += [word, ""] if taking else [word]
        return super().parse_args(ctx, joined)


def level(name: str, rounds: int, methods: Sequence[str], chosen: Sequence[str] = ()) -> Callable[..., Any]:
    """Make a command of a function that measures: it gets fresh results to fill, and the options.

    Of the methods, all that there are, those chosen are compared unless others are asked for; none for all.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    options = (
        click.option("--json", type=click.Path(path_type=Path), help="Where the results are written."),
        click.option("--picture", type=click.Path(path_type=Path), help="Where a PNG of them is written."),
        click.option(
            "--rounds", type=POSITIVE, default=rounds, show_default=True, help="Of timing, at most."
        ),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default=here, show_default=True),
        click.option("--threads", type=POSITIVE, help="Threads that torch uses (default: its own choice)."),
        click.option("--commit", help="The commit, where the sources are a copy without .git."),
        click.option("--lorafusion", type=click.Path(path_type=Path), help="A checkout of LoRAFusion."),
        click.option("--methods", type=Names(methods), default=list(chosen or methods), show_default=True),
    )

    def make(measure: Callable[..., None]) -> click.Command:
        @functools.wraps(measure)
        def run(**given: Any) -> None:
            device = _prepare_torch(given)
            command = shlex.join(["python", "-m", f"bench.{name}", *sys.argv[1:]])
            started = datetime.now(timezone.utc).isoformat(timespec="seconds")
            results = Results(environment(device, given["commit"]), command, started)
            measure(results, device=device, effort=effort_on(device, given["rounds"]), **_own(given))
            finish(results, given["json"], given["picture"])

        decorated = functools.reduce(lambda function, option: option(function), reversed(options), run)
        return click.command(name, cls=Command, help=(sys.modules[measure.__module__].__doc__ or ""))(
            decorated
        )

    return make


def net_options(adam: Sequence[str]) -> Callable[..., Any]:
    """The option of the levels that take whole steps: in which ways torch computes Adam's."""
    return click.option("--adam", type=Names(list(ADAMS)), default=list(adam), show_default=True)


def _own(given: dict[str, Any]) -> dict[str, Any]:
    taken = ("device", "picture", "commit", "lorafusion", "rounds")
    return {name: value for name, value in given.items() if name not in taken}


def _prepare_torch(given: dict[str, Any]) -> torch.device:
    """The device asked for; sets threads, and denormals to zero as the MNIST job does.

    Adam's mean of a gradient that has become zero falls by 0.9 a step until it is denormal, and denormals
    cost the CPU several times the whole step.
    """
    if given["lorafusion"] is not None:
        os.environ[CHECKOUT] = str(given["lorafusion"].resolve())
    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return torch.device(given["device"])


def keep_ceilings(
    results: Results, effort: Effort, dtypes: Sequence[torch.dtype]
) -> dict[torch.dtype, Ceilings]:
    """Measure the ceilings of each dtype, those of the first first."""
    ceilings = {dtype: measure_ceilings(effort, dtype) for dtype in dtypes}
    results.ceilings, *results.other_ceilings = (found._asdict() for found in ceilings.values())
    return ceilings


def finish(results: Results, json: Path | None, picture: Path | None) -> None:
    """Print the tables, write what was asked for; exits with status 1 if anything went wrong."""
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    print_header(results, console)
    print_tables(results, console)
    if json is not None:
        results.write(json)
    if picture is not None and results.rows:
        draw_groups(results, picture)
    sys.exit(1 if results.failures() else 0)
