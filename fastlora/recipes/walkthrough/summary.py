"""The summary that the walk-through prints at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from fastlora.recipes.summary import figures_table, print_lines, print_notes, print_proofs
from fastlora.recipes.walkthrough.libraries import Counts
from fastlora.recipes.walkthrough.results import BASE, PICTURE, Walk, WalkResult
from fastlora.recipes.walkthrough.walk import TENSORS

# {field of `Proofs`: the claim in words}
_CLAIMS: Final = {
    "starts_at_zero": "B A is exactly 0 before the first step",
    "base_identical": "every tensor of the base is in the fine-tuned net, bit for bit",
    "merged_holds": "merged and unloaded: W + s B A within rounding, and the rest the base's, bit for bit",
    "reloaded_identical": "saved, and loaded into the base: the same outputs, bit for bit",
}


def print_summary(result: WalkResult, console: Console) -> None:
    """Print the figures, the proofs, and where the files are; one column for each library."""
    console.print()
    print_lines(console, _base(result))
    console.print(_figures(result))
    console.print("What fine-tuning moved: ‖change‖ / ‖tensor before‖", highlight=False)
    console.print(_tensors(result))
    for name, walk in result.walks.items():
        proofs = walk.proofs._asdict().items()
        print_proofs(console, ((f"{name}: {_CLAIMS[proof]}", holds) for proof, holds in proofs))
    adapters = [("Adapter", f"{name}/{TENSORS}") for name in result.walks]
    print_notes(console, result, PICTURE, [*adapters, ("Base", BASE)])


def _base(result: WalkResult) -> Iterator[str]:
    yield f"{result.base_parameters:,} parameters in the net, a file of {result.base_bytes / 1000:,.0f} kB"
    yield (
        f"Pretraining ended at a loss of {result.pretrain[-1]:.4f}, {result.pretrain_accuracy:.1%} of the "
        f"test rows right; of the downstream task's, {result.base_accuracy:.1%}"
    )


def _figures(result: WalkResult) -> Table:
    """Parameters, losses and sizes."""
    table = figures_table(result.walks)
    rows: list[tuple[str, Callable[[Walk], str]]] = [
        ("trained", lambda walk: _share(walk.counts)),
        ("last layer besides", lambda walk: _share(walk.with_full_layer)),
        ("merged, unloaded", lambda walk: f"{walk.merged_parameters:,}"),
        ("adapter file", lambda walk: f"{walk.adapter_bytes / 1000:,.1f} kB"),
        ("loss, same data", lambda walk: _ends(walk.losses["same_data"])),
        ("loss, downstream", lambda walk: _ends(walk.losses["downstream"])),
        ("right, downstream", lambda walk: f"{walk.accuracy:.1%}"),
    ]
    for name, cell in rows:
        table.add_row(name, *map(cell, result.walks.values()))
    return table


def _share(counts: Counts) -> str:
    return f"{counts.trainable:,} of {counts.total:,}, {counts.percent:.4f}%"


def _ends(losses: Sequence[float]) -> str:
    return f"{losses[0]:.4f} to {losses[-1]:.4f}"


def _tensors(result: WalkResult) -> Table:
    """Which tensors moved."""
    table = figures_table(result.walks)
    for name in result.ours.moved:
        table.add_row(name, *(_moved(walk, name) for walk in result.walks.values()))
    return table


def _moved(walk: Walk, name: str) -> str:
    if not walk.moved[name]:
        return "not a bit"
    change = walk.change[name]
    return "moved from 0" if change is None else f"moved, {change:.4f}"
