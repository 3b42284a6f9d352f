"""What the levels have in common: options, the header, and where results go."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from bench.environment import environment
from bench.nets.trainer import ADAMS
from bench.results import Results
from bench.table import print_tables

# Of the widest table: folded it cannot be read, and a file has no width.
_TABLE_WIDTH: Final = 170

Draw = Callable[[Results, Path], None]


def level_parser(level: str, about: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every level takes."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{level}", description=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results are written")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where a PNG of them is written")
    parser.add_argument(
        "--rounds",
        type=positive,
        default=rounds,
        help="how often each method is timed (default: %(default)s)",
    )
    return parser


def add_device(
    parser: argparse.ArgumentParser, methods: Sequence[str], chosen: Sequence[str] | None = None
) -> None:
    """The options of the levels that compute: where, with how many threads, and which methods.

    Args:
        parser: That of the level.
        methods: Names of all that there are.
        chosen: Of those that are compared unless others are asked for; None for all.
    """
    chosen = chosen or methods
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=here, help="where (default here: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--commit", help="the commit, where the sources are a copy without .git")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=methods,
        default=list(chosen),
        metavar="METHOD",
        help=f"which of {', '.join(methods)} (default: {' '.join(chosen)})",
    )


def add_adam(parser: argparse.ArgumentParser, chosen: Sequence[str]) -> None:
    """The option of the levels that take whole steps: how Adam is computed."""
    parser.add_argument(
        "--adam",
        nargs="+",
        choices=ADAMS,
        default=list(chosen),
        metavar="WAY",
        help=f"ways in which torch computes Adam's step, of {', '.join(ADAMS)} (default: {' '.join(chosen)})",
    )


def prepare_torch(options: argparse.Namespace) -> torch.device:
    """The device asked for; sets threads, and denormals to zero as the MNIST job does.

    Adam's mean of a gradient that has become zero falls by 0.9 a step until it is denormal, and denormals
    cost the CPU several times the whole step.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return torch.device(options.device)


def fresh_results(level: str, arguments: Sequence[str], device: torch.device, commit: str | None) -> Results:
    """Results with nothing in them yet."""
    return Results(
        environment=environment(device, commit),
        command=shlex.join(["python", "-m", f"bench.{level}", *arguments]),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def finish(results: Results, options: argparse.Namespace, draw: Draw) -> int:
    """Print the tables, write what was asked for; the exit status, 1 if anything went wrong.

    Raises:
        ImportError: If a picture is asked for and matplotlib is not installed.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    here = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items() if version)
    commit = f"{here.commit or 'unknown'}{', modified' if here.modified else ''}"
    for name, value in (("device", here.device["name"]), ("versions", versions), ("commit", commit)):
        console.print(f"{name:8}  {value}", highlight=False, soft_wrap=True)
    print_tables(results, console)
    if options.json is not None:
        results.write(options.json)
    if options.picture is not None and results.rows:
        draw(results, options.picture)
    return 1 if results.failures() else 0


def positive(text: str) -> int:
    """A number of the command line that counts something."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
