"""What the walk-through prints at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from fastlora.recipes.walkthrough.libraries import Counts
from fastlora.recipes.walkthrough.results import BASE, PICTURE, RESULTS, Walk, WalkResult
from fastlora.recipes.walkthrough.walk import TENSORS

# By the names in `Proofs`.
_CLAIMS: Final = {
    "starts_at_zero": "B A is exactly 0 before the first step",
    "base_identical": "every tensor of the base is in the fine-tuned net, bit for bit",
    "merged_holds": "merged and unloaded, each adapted weight is W + s B A within rounding, the rest the base's",
    "reloaded_identical": "saved, and loaded into the base: the same outputs, bit for bit",
}


def print_summary(result: WalkResult, console: Console) -> None:
    """Print the figures, the proofs, and where the files lie; one column for each library."""
    console.print()
    console.print(_figures(result))
    console.print(_tensors(result))
    marks = ("✓", "✗") if console.encoding.startswith("utf") else ("ok", "NO")
    for name, walk in result.walks.items():
        for proof, holds in walk.proofs._asdict().items():
            mark, style = (marks[0], "green") if holds else (marks[1], "bold red")
            console.print(f"{mark} {name}: {_CLAIMS[proof]}", style=style, highlight=False)
    for line in _notes(result):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(title: str, walks: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in walks:
        table.add_column(name, justify="right")
    return table


def _figures(result: WalkResult) -> Table:
    """Parameters, losses and sizes."""
    base, walks = result.base_parameters, list(result.walks.values())
    table = _table(
        f"{base:,} parameters in the net; pretraining ended at a loss of {result.pretrain[-1]:.4f}",
        result.walks,
    )
    rows: list[tuple[str, Callable[[Walk], str]]] = [
        ("trained", lambda walk: _share(walk.counts)),
        ("with the last layer in full", lambda walk: _share(walk.with_full_layer)),
        ("merged and unloaded", lambda walk: f"{walk.merged_parameters:,}"),
        ("loss, same data", lambda walk: _ends(walk.losses["same_data"])),
        ("loss, downstream task", lambda walk: _ends(walk.losses["downstream"])),
        (f"right downstream (base: {result.base_accuracy:.1%})", lambda walk: f"{walk.accuracy:.1%}"),
        (
            f"adapter's kB (base: {result.base_bytes / 1000:,.0f})",
            lambda walk: f"{walk.adapter_bytes / 1000:,.1f}",
        ),
    ]
    for name, cell in rows:
        table.add_row(name, *map(cell, walks))
    return table


def _share(counts: Counts) -> str:
    return f"{counts.trainable:,} of {counts.total:,}, {counts.percent:.4f}%"


def _ends(losses: Sequence[float]) -> str:
    return f"{losses[0]:.4f} to {losses[-1]:.4f}"


def _tensors(result: WalkResult) -> Table:
    """Which tensors moved."""
    table = _table("What fine-tuning moved: ‖change‖ / ‖tensor before‖", result.walks)
    for name in result.ours.moved:
        table.add_row(name, *(_moved(walk, name) for walk in result.walks.values()))
    return table


def _moved(walk: Walk, name: str) -> str:
    if not walk.moved[name]:
        return "not a bit"
    change = walk.change[name]
    return "moved from 0" if change is None else f"moved, {change:.4f}"


def _notes(result: WalkResult) -> Iterator[str]:
    yield f"Fused layers ran on: {result.path.name} ({result.path.why})"
    out = result.options.out
    for name in result.walks:
        yield f"Adapter: {out / name / TENSORS}"
    yield f"Base: {out / BASE}"
    yield f"Results: {out / RESULTS}"
    yield f"Picture: {out / PICTURE}"
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())
    yield f"Seconds: {spent}; together {sum(result.seconds.values()):.1f}"
