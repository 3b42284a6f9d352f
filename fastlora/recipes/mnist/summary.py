"""The summary that the MNIST job prints at the end."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from fastlora.recipes.mnist.methods import FULL
from fastlora.recipes.mnist.results import ADAPTER, PICTURE, MnistResult
from fastlora.recipes.summary import figures_table, print_lines, print_notes, print_proofs


def print_summary(result: MnistResult, console: Console) -> None:
    """Print the figures, the proofs, and where the files are."""
    console.print()
    print_lines(console, _parameters(result))
    console.print()
    console.print(_counts(result))
    print_proofs(console, _proofs(result))
    size = result.adapter_bytes
    print_notes(console, result, PICTURE, [] if size is None else [("Adapter", f"{ADAPTER}, {size:,} bytes")])


def _parameters(result: MnistResult) -> Iterator[str]:
    base, lora, total, percent = result.parameters
    yield f"{base:>10,} parameters in the net"
    if result.options.method == FULL:
        yield "           all of them fine-tuned, no LoRA"
        return
    yield f"{lora:>10,} added by LoRA, {percent:.3f}% of the net's"
    yield f"{total:>10,} together"


def _counts(result: MnistResult) -> Table:
    """Accuracy and wrong counts, a row for each test; the digit fine-tuned on is highlighted."""
    digits = [f"[{d}]" if d == result.digit else str(d) for d in range(len(result.base.wrong))]
    title = f"Wrong of {result.test_digits:,} test digits; fine-tuned on {result.digit} alone"
    table = figures_table(["accuracy", *digits], title)
    table.columns[2 + result.digit].style = "bold"
    on = "fine-tuned" if result.options.method == FULL else "LoRA on"
    for name, score in (("base", result.base), (on, result.on), ("LoRA off", result.off)):
        if score is not None:
            table.add_row(name, f"{score.accuracy:.4f}", *map(str, score.wrong))
    return table


def _proofs(result: MnistResult) -> Iterator[tuple[str, bool]]:
    claims = (
        ("frozen weights are the base's, bit for bit", result.frozen_identical),
        ("LoRA on: every effective weight is W + s B A, within rounding", result.effective_holds),
        ("LoRA off: every weight and every wrong count is exactly the base's", result.off_identical),
    )
    for claim, holds in claims:
        if holds is not None:
            yield claim, holds
