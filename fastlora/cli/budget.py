"""`fastlora budget`: its options, and its table."""

from __future__ import annotations

import json

import click
import torch

from fastlora.accounting.meta_models import blueprint_budget
from fastlora.cli.reporting import reported
from fastlora.config import ALL_LINEAR, LoRAConfig
from fastlora.formats.registry import FORMATS

_DTYPE = click.Choice(["float16", "bfloat16", "float32"])


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    required=True,
    help="Layers as K,N or NAME=K,N*COUNT, separated by spaces or semicolons; or a Transformers model: a "
    "config's JSON file, a type such as llama, or a hub name as org/name. No weights are made or read.",
)
@click.option("--rank", type=int, default=16, help="Rank r of the updates.")
@click.option("--targets", default=ALL_LINEAR, help="Names of layers, separated by commas, or all-linear.")
@click.option("--batch", type=int, default=1, help="Sequences in a batch.")
@click.option("--tokens", type=int, default=2048, help="Tokens in a sequence.")
@click.option("--dtype", type=_DTYPE, default="bfloat16", help="Of the model.")
@click.option(
    "--adapter-dtype",
    type=_DTYPE,
    help="Of A and B.  [default: the model's, but fp32 over 16 bits]",
    show_default=False,
)
@click.option(
    "--base",
    type=click.Choice(list(FORMATS)),
    help="The packed format that LoRA's base is loaded in.  [default: the model's dtype]",
    show_default=False,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in bytes, instead of a table.")
def budget(
    model: str,
    rank: int,
    targets: str,
    batch: int,
    tokens: int,
    dtype: str,
    adapter_dtype: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Count what full fine-tuning and LoRA take: parameters, memory by kind, and bytes on disk.

    Counted, not measured: one training step with Adam in the model's dtype, without temporaries, the loss, or
    what the CUDA libraries hold.
    """
    with reported():
        config = LoRAConfig(
            r=rank,
            target_modules=ALL_LINEAR
            if targets == ALL_LINEAR
            else [name.strip() for name in targets.split(",")],
            adapter_dtype=getattr(torch, adapter_dtype) if adapter_dtype else None,
        )
        found = blueprint_budget(
            model, config, batch=batch, tokens=tokens, dtype=getattr(torch, dtype), base=base
        )
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        click.echo(str(found))
