"""What the jobs with LoRA print at the end: tables of figures, proofs, and where the files are."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from fastlora.recipes.frame import RESULTS
from fastlora.recipes.results import LoRAResult


def figures_table(columns: Iterable[str], title: str | None = None) -> Table:
    """A table with a first column of row names, followed by these columns of numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines literally and without wrapping."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_proofs(console: Console, proofs: Iterable[tuple[str, bool]]) -> None:
    """Print (claim, whether it holds), each with a mark."""
    marks = ("✓", "✗") if console.encoding.startswith("utf") else ("ok", "NO")
    for claim, holds in proofs:
        mark, style = (marks[0], "green") if holds else (marks[1], "bold red")
        console.print(f"{mark} {claim}", style=style, soft_wrap=True, highlight=False)


def print_notes(console: Console, result: LoRAResult, picture: str, files: Iterable[tuple[str, str]]) -> None:
    """Print which code ran, where the files are, and the seconds of each phase.

    Args:
        console: The console to print on.
        result: The job's results.
        picture: The name of the picture's file.
        files: (kind, name) of the job's other files; a name may be followed by more text.
    """
    out = result.options.out
    if result.path is not None:
        print_lines(console, [f"Fused layers ran on: {result.path.name} ({result.path.why})"])
    listed = (*files, ("Results", RESULTS), ("Picture", picture))
    print_lines(console, (f"{kind}: {out / name}" for kind, name in listed))
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())
    print_lines(console, [f"Seconds: {spent}; together {sum(result.seconds.values()):.1f}"])
