"""Progress of a job: a bar for each phase on a terminal, else a plain line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")


class ConsoleProgress:
    """A `Track` that shows progress on a console.

    Args:
        console: The console to write to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """Yield `items`, `total` of them, under a bar called `what`."""
        if not self._console.is_terminal:
            self._console.print(f"{what}: {total:,} steps")
            yield from items
            return
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield from progress.track(items, total=total, description=what)
