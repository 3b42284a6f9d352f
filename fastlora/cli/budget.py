"""`fastlora budget`: its options, and its table."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fastlora.blueprint import blueprint_budget
from fastlora.budget import Budget, Needs
from fastlora.config import ALL_LINEAR, LoRAConfig

_DTYPE = click.Choice(["float16", "bfloat16", "float32"])

_ROWS: dict[str, Callable[[Needs], int]] = {
    "saved after training": lambda needs: needs.saved,
    "weights": lambda needs: needs.weights,
    "gradients": lambda needs: needs.gradients,
    "optimizer (Adam)": lambda needs: needs.optimizer,
    "saved activations": lambda needs: needs.activations,
    "memory, all four": lambda needs: needs.total,
}


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    required=True,
    help="Layers as K,N or NAME=K,N*COUNT, separated by spaces or semicolons; or a Transformers model: a "
    "config's JSON file, a type such as llama, or a name on the hub. No weights are made or read.",
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in bytes, instead of a table.")
def budget(
    model: str,
    rank: int,
    targets: str,
    batch: int,
    tokens: int,
    dtype: str,
    adapter_dtype: str | None,
    as_json: bool,
) -> None:
    """Count what full fine-tuning and LoRA take: parameters, memory by kind, and bytes on disk.

    Counted, not measured: one training step with Adam in the model's dtype, without temporaries, the loss, or
    what the CUDA libraries hold.
    """
    try:
        config = LoRAConfig(
            r=rank,
            target_modules=ALL_LINEAR
            if targets == ALL_LINEAR
            else [name.strip() for name in targets.split(",")],
            adapter_dtype=getattr(torch, adapter_dtype) if adapter_dtype else None,
        )
        found = blueprint_budget(model, config, batch=batch, tokens=tokens, dtype=getattr(torch, dtype))
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except (ImportError, OSError) as error:
        # Transformers' messages go on for several lines.
        raise click.ClickException(str(error).splitlines()[0]) from error
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        Console().print(_table(found))


def _table(found: Budget) -> Table:
    full, lora = found.full, found.lora
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for way in ("full", "LoRA", "full / LoRA"):
        table.add_column(way, justify="right")
    table.add_row(
        "trained parameters",
        f"{full.trainable:,}",
        f"{lora.trainable:,}",
        _ratio(full.trainable, lora.trainable),
    )
    for name, part in _ROWS.items():
        table.add_row(name, _size(part(full)), _size(part(lora)), _ratio(part(full), part(lora)))
    return table


def _size(count: int) -> str:
    """Decimal units, as files and memory are advertised in."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _ratio(full: int, lora: int) -> str:
    if not lora:
        return ""
    ratio = full / lora
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"
