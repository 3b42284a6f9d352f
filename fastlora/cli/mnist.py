"""`fastlora mnist`: its options; the job is in `fastlora.recipes.mnist`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastlora.cli.job import carry_out
from fastlora.cli.options import device_option, out_option
from fastlora.recipes.mnist.job import run
from fastlora.recipes.mnist.methods import METHODS
from fastlora.recipes.mnist.options import MnistOptions
from fastlora.recipes.mnist.summary import print_summary
from fastlora.recipes.options import AUTO


@click.command(context_settings={"show_default": True})
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with MNIST's four IDX files, plain or .gz, in itself or in MNIST/raw. "
    "Without it, the 5,000 digits that come with the package are used.",
)
@click.option("--download", is_flag=True, help="Let torchvision fetch the full set into --data, or OUT/data.")
@click.option("--digit", default="9", help=f"Fine-tune on this digit; {AUTO}: on the one most often wrong.")
@click.option("--rank", type=int, default=1, help="Rank r of the update.")
@click.option("--alpha", type=float, default=1.0, help="The update is scaled by alpha / r.")
@click.option("--epochs", type=int, help="Passes of the first training.  [default: 5; full set: 1]")
@click.option("--batches", type=int, default=100, help="Batches of 10 to fine-tune for.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="fused",
    help="How LoRA is computed: fused layers, plain torch, or a parametrization; full trains all weights.",
)
@click.option("--seed", type=int, default=0, help="Of the weights and of the order of the digits.")
@device_option
@out_option("mnist-out", "results.json, the adapter and the picture")
def mnist(digit: str, **chosen: Any) -> None:
    """Train a net on handwritten digits, fine-tune it with LoRA on one digit, and prove what LoRA promises.

    With LoRA on, the net knows that digit better. With LoRA off, it is bit for bit the net from before.
    """
    number = int(digit) if digit.isdecimal() else digit
    carry_out(lambda: MnistOptions(digit=number, **chosen), run, print_summary)
