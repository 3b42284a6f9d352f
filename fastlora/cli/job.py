"""Runs a job for a command: shows progress and summary, and reports errors and failed proofs by click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import click
from rich.console import Console

from fastlora.adapter_files import AdapterError
from fastlora.cli.reporting import reported
from fastlora.recipes.frame import MissingExtraError
from fastlora.recipes.idx import DigitsError
from fastlora.recipes.mnist.download import DownloadError
from fastlora.recipes.progress import ConsoleProgress
from fastlora.routes.backend import BackendError

# Errors that are not faults of the program; any other keeps its traceback.
_EXPECTED = (
    AdapterError,
    BackendError,
    DigitsError,
    DownloadError,
    FloatingPointError,
    MissingExtraError,
    OSError,
)


_WIDTH = 100


class _Result(Protocol):
    @property
    def proved(self) -> bool: ...


OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT", bound=_Result)


def carry_out(
    read_options: Callable[[], OptionsT],
    run: Callable[[OptionsT, ConsoleProgress], ResultT],
    print_summary: Callable[[ResultT, Console], None],
) -> None:
    """Read the options, run the job with progress on the terminal, and print its summary.

    Raises:
        click.UsageError: If the options are wrong.
        click.ClickException: If the job fails for a reason outside the program, or a proof fails.
    """
    with reported(failed=()):
        options = read_options()
    console = Console()
    with reported(wrong=(), failed=_EXPECTED):
        result = run(options, ConsoleProgress(console))
    # Wide enough for the tables. In a narrow terminal or a pipe, rich would cut off their numbers.
    print_summary(result, Console(width=max(console.width, _WIDTH)))
    if not result.proved:
        raise click.ClickException("a proof failed")
