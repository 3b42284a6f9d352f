"""`fastlora tune`: its options, progress and table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fastlora.accounting.meta_models import blueprint_with_lora
from fastlora.arguments import adapter_dtype_over
from fastlora.cli.reporting import reported
from fastlora.config import ALL_LINEAR, LoRAConfig
from fastlora.formula.cost import Problem
from fastlora.tune_model import ROWS, requests_of, tune_requests, untuned
from fastlora.tuning.packed_weights import BASES
from fastlora.tuning.report import Progress, Request

_DTYPE = click.Choice(["float16", "bfloat16", "float32"])
# The linear layers of Llama-3.1-8B, where nothing else is asked for.
_LAYERS = "4096,4096 4096,1024 4096,14336 14336,4096"


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    help="As for `fastlora budget`: a Transformers model, or layers as K,N. No weights are read.  "
    "[default: the layers of Llama-3.1-8B]",
    show_default=False,
)
@click.option("--shape", "shapes", multiple=True, help="M,K,N,r of a layer and batch; may be given again.")
@click.option("--rows", default=",".join(map(str, ROWS)), help="With --model: tokens in a batch.")
@click.option("--rank", type=int, default=16, help="With --model: rank r.")
@click.option("--dtype", type=_DTYPE, default="bfloat16", help="Of the model.")
@click.option(
    "--adapter-dtype", type=_DTYPE, help="Of A and B.  [default: fp32 over 16 bits]", show_default=False
)
@click.option(
    "--base",
    type=click.Choice(sorted(BASES)),
    help="How W is packed.  [default: it is not]",
    show_default=False,
)
@click.option("--dropout", is_flag=True, help="For training with dropout.")
@click.option("--minutes", type=float, default=5.0, help="Begin nothing later.")
@click.option("--dry-run", is_flag=True, help="Every step on the CPU, tiny; its choices mean nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: FASTLORA_TUNE_FILE, or this GPU's in the user's cache]",
    show_default=False,
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Copy this GPU's choices to a file that can be sent, and measure nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def tune(
    minutes: float, dry_run: bool, out: Path | None, export: Path | None, as_json: bool, **asked: Any
) -> None:
    """Measure which code is the fastest on this GPU, and have later runs take it.

    Tiles of the kernels and the vendor's matrix products compete, layer by layer, forward and backward. Each
    is proven first, in a process of its own; one that is wrong or hangs is never used. Nothing is written
    before the end; Ctrl-C ends early, and what was measured by then is kept.
    """
    with reported():
        if export is not None:
            click.echo(f"this GPU's choices are in {_exported(export)}")
            return
        requests, others = _requests(**asked)
        with _bar() as progress:
            report = tune_requests(requests, minutes=minutes, path=out, dry_run=dry_run, progress=progress)
        report.untuned = others
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else str(report))
    if not report.found:
        raise click.ClickException("nothing was measured")


def _requests(
    model: str | None,
    shapes: Sequence[str],
    rows: str,
    rank: int,
    dtype: str,
    adapter_dtype: str | None,
    base: str | None,
    dropout: bool,
) -> tuple[list[Request], list[str]]:
    """What is tuned for, and the model's layers that take other code."""
    of_W, format = getattr(torch, dtype), "plain" if base is None else BASES[base]
    adapters = adapter_dtype_over(of_W, None if adapter_dtype is None else getattr(torch, adapter_dtype))
    if model is not None and shapes:
        raise ValueError("--model and --shape must not both be given")
    if shapes:
        sizes = [_numbers("--shape", shape, 4) for shape in shapes]
        problems = [Problem(M, K, N, r, of_W, adapters, format) for M, K, N, r in sizes]
        return [Request(problem, dropout) for problem in problems], []
    each = _numbers("--rows", rows)
    config = LoRAConfig(
        r=rank, target_modules=ALL_LINEAR, adapter_dtype=adapters, dropout=0.1 if dropout else 0.0
    )
    found = blueprint_with_lora(model or _LAYERS, config, of_W)
    requests = [one._replace(problem=one.problem._replace(base=format)) for one in requests_of(found, each)]
    return requests, untuned(found)


def _exported(to: Path) -> Path:
    """Copy this GPU's choices."""
    from fastlora.routes.choices import own_file, read_file  # needs the kernels' package

    if not torch.cuda.is_available():
        raise ValueError("--export copies the choices of this machine's GPU, and torch sees none")
    own = own_file(torch.cuda.get_device_name())
    if own is None or not own.exists():
        raise ValueError("--export needs choices; run `fastlora tune` first")
    read_file(own)
    shutil.copyfile(own, to)
    return to


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on a terminal, else a line for each contest; on stderr, so that --json can be piped."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not console.is_terminal:
        yield lambda done, total, text: console.print(f"{done + 1} of {total}: {text}") if text else None
        return
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _numbers(option: str, text: str, count: int | None = None) -> list[int]:
    """Whole numbers with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= 9 for part in parts) or (
        count is not None and len(parts) != count
    ):
        what = f"{count} whole numbers M,K,N,r" if count else "whole numbers"
        raise ValueError(f"{option} must be {what} with commas between them; got {text[:100]!r}")
    return list(map(int, parts))
