"""What the MNIST job prints at its end."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from fastlora.recipes.methods import FULL
from fastlora.recipes.results import ADAPTER, PICTURE, RESULTS, MnistResult


def print_summary(result: MnistResult, console: Console) -> None:
    """Print the figures, the proofs, and where the files lie."""
    console.print()
    for line in _parameters(result):
        console.print(line, highlight=False)
    console.print()
    console.print(_counts(result))
    marks = ("✓", "✗") if console.encoding.startswith("utf") else ("ok", "NO")
    for claim, holds in _proofs(result):
        mark, style = (marks[0], "green") if holds else (marks[1], "bold red")
        console.print(f"{mark} {claim}", style=style, highlight=False)
    for line in _notes(result):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _parameters(result: MnistResult) -> Iterator[str]:
    base, lora, total, percent = result.parameters
    yield f"{base:>10,} parameters in the net"
    if result.options.method == FULL:
        yield "           all of them fine-tuned, no LoRA"
        return
    yield f"{lora:>10,} added by LoRA, {percent:.3f}% of the net's"
    yield f"{total:>10,} together"


def _counts(result: MnistResult) -> Table:
    """Accuracy and wrong counts, a row for each test; the digit that was fine-tuned on stands out."""
    table = Table(
        title=f"Wrong of {result.test_digits:,} test digits; fine-tuned on {result.digit} alone",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("accuracy", justify="right")
    for digit in range(len(result.base.wrong)):
        chosen = digit == result.digit
        table.add_column(
            f"[{digit}]" if chosen else str(digit), justify="right", style="bold" if chosen else ""
        )
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


def _notes(result: MnistResult) -> Iterator[str]:
    if result.path is not None:
        yield f"Fused layers ran on: {result.path.name} ({result.path.why})"
    out = result.options.out
    if result.adapter_bytes is not None:
        yield f"Adapter: {out / ADAPTER}, {result.adapter_bytes:,} bytes"
    yield f"Results: {out / RESULTS}"
    yield f"Picture: {out / PICTURE}"
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())
    yield f"Seconds: {spent}; together {sum(result.seconds.values()):.1f}"
