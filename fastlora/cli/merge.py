"""`fastlora merge`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from fastlora.adapter_files import AdapterError
from fastlora.cli.options import out_option
from fastlora.cli.reporting import reported
from fastlora.recipes.finetune.merge import merge as merge_into_base
from fastlora.recipes.finetune.options import DTYPES
from fastlora.recipes.options import AUTO


@click.command(context_settings={"show_default": True})
@click.option(
    "--adapter",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The adapter's folder.",
)
@click.option("--model", help="The base.  [default: the one that the adapter names]")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default=AUTO, help="Of the weights; auto: as in its files."
)
@out_option("merged", "the model; it must be new or empty")
def merge(adapter: Path, model: str | None, dtype: str, out: Path) -> None:
    """Write a plain model with an adapter merged into its weights, which Transformers and servers read."""
    with reported(wrong=(), failed=(AdapterError, ImportError, OSError, ValueError)):
        done = merge_into_base(adapter, model, out, dtype)
    click.echo(f"{done.layers} layers of {done.model} merged; {done.parameters:,} parameters in {done.out}")
    click.echo(f"Talk to it: fastlora generate --model {quote(str(done.out))}")
