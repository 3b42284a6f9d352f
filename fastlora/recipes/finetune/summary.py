"""The summary that the fine-tuning job prints at the end."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from rich.console import Console

from fastlora.recipes.finetune.options import FULL
from fastlora.recipes.finetune.results import ADAPTER, MODEL, PICTURE, FinetuneResult
from fastlora.recipes.finetune.rows import MESSAGES
from fastlora.recipes.frame import RESULTS
from fastlora.recipes.summary import print_lines


def print_summary(result: FinetuneResult, console: Console) -> None:
    """Print the figures, which code ran, where the files are, and how to go on."""
    console.print()
    print_lines(console, _figures(result))
    print_lines(console, _paths(result))
    print_lines(console, _files(result))


def _figures(result: FinetuneResult) -> Iterator[str]:
    trained = f"{result.trainable:,} parameters trained"
    if result.options.method != FULL:
        trained += f", {100 * result.lora_parameters / result.base_parameters:.3g}% of the model's"
    yield f"{trained}; the loss is of {result.loss_on}"
    if result.unused:
        yield f"Fields of the rows that were not used: {', '.join(result.unused)}"
    missing = result.rows["train"] - result.sequences
    if not result.options.packing and missing > 0:
        yield f"Rows left out, as nothing of them was to train on within --length: {missing:,}"
    if not result.options.packing and result.full_length:
        yield f"Rows as long as --length, of which more may be cut off: {result.full_length:,}"
    first, last = result.losses[0][1], result.losses[-1][1]
    yield f"Loss {first:.4f} at step 1, {last:.4f} at step {result.steps:,}"
    if result.evaluation:
        begun, ended = result.evaluation[0], result.evaluation[-1]
        yield f"Evaluation loss {begun[1]:.4f} at step {begun[0]:,}, {ended[1]:.4f} at step {ended[0]:,}"
    if result.tokens_per_second is not None:
        yield f"Tokens a second: {result.tokens_per_second:,.0f}"
    if result.peak_memory_bytes is not None:
        yield f"Peak memory: {result.peak_memory_bytes / 2**20:,.0f} MiB"


def _paths(result: FinetuneResult) -> Iterator[str]:
    for kind in result.kinds:
        shape = f"{kind.layers} x {kind.K} -> {kind.N}, r = {kind.r}, W in {kind.W}"
        yield f"{shape}: ran on {kind.path} ({kind.why})"


def _files(result: FinetuneResult) -> Iterator[str]:
    out, lora = result.options.out, result.options.method != FULL
    what = out / (ADAPTER if lora else MODEL)
    yield f"{'Adapter' if lora else 'Model'}: {what}"
    yield f"Results: {out / RESULTS}"
    yield f"Picture: {out / PICTURE}"
    raw = "" if result.form == MESSAGES else " --raw"
    quoted, merged = quote(str(what)), quote(str(out / "merged"))
    yield f"Talk to it: fastlora generate --{'adapter' if lora else 'model'} {quoted}{raw}"
    if lora:
        yield f"Merge it: fastlora merge --adapter {quoted} --out {merged}"
