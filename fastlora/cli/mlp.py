"""`fastlora mlp`: its options; the job is in `fastlora.recipes.walkthrough`."""

from __future__ import annotations

from typing import Any

import click

from fastlora.cli.job import carry_out
from fastlora.cli.options import device_option, out_option
from fastlora.recipes.walkthrough.job import run
from fastlora.recipes.walkthrough.options import PEERS, WalkOptions
from fastlora.recipes.walkthrough.summary import print_summary


@click.command(context_settings={"show_default": True})
@click.option("--rank", type=int, default=3, help="Rank r of the updates.")
@click.option("--alpha", type=float, default=8.0, help="The updates are scaled by alpha / r.")
@click.option("--seed", type=int, default=1, help="Of the rows, the weights and the order of the rows.")
@device_option
@click.option(
    "--peer", type=click.Choice(PEERS), help="Take the same steps with this library too, and show both."
)
@out_option("mlp-out", "results.json, the base, the adapters and the picture")
def mlp(**chosen: Any) -> None:
    """Walk through LoRA on a small MLP, as PEFT's own example does, and look at every tensor.

    A net is trained to say whether the sine of a row's sum is positive, and fine-tuned with LoRA to say
    whether the sum is above 10.
    """
    carry_out(lambda: WalkOptions(**chosen), run, print_summary)
