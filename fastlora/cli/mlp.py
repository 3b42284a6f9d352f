"""`fastlora mlp`: its options, and nothing of what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fastlora.backend import BackendError
from fastlora.pretrained import AdapterError
from fastlora.recipes.extras import MissingExtraError
from fastlora.recipes.options import AUTO
from fastlora.recipes.progress import ConsoleProgress
from fastlora.recipes.walkthrough.job import run
from fastlora.recipes.walkthrough.options import PEERS, WalkOptions
from fastlora.recipes.walkthrough.summary import print_summary

# What can go wrong without a fault in the program; anything else keeps its traceback.
_EXPECTED = (AdapterError, BackendError, FloatingPointError, MissingExtraError, OSError)


@click.command(context_settings={"show_default": True})
@click.option("--rank", type=int, default=3, help="Rank r of the updates.")
@click.option("--alpha", type=float, default=8.0, help="The updates are scaled by alpha / r.")
@click.option("--seed", type=int, default=1, help="Of the rows, the weights and the order of the rows.")
@click.option("--device", default=AUTO, help=f"Such as cpu or cuda; {AUTO}: the GPU where there is one.")
@click.option(
    "--peer", type=click.Choice(PEERS), help="Take the same steps with this library too, and show both."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("mlp-out"),
    help="Folder for results.json, the base, the adapters and the picture.",
)
def mlp(**chosen: Any) -> None:
    """Walk through LoRA on a small MLP, as PEFT's own example does, and look at every tensor.

    A net is trained to say whether the sine of a row's sum is positive, and fine-tuned with LoRA to say
    whether the sum is above 10.
    """
    try:
        options = WalkOptions(**chosen)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    console = Console()
    try:
        result = run(options, ConsoleProgress(console))
    except _EXPECTED as error:
        raise click.ClickException(str(error)) from error
    print_summary(result, console)
    if not result.proved:
        raise click.ClickException("a proof failed")
