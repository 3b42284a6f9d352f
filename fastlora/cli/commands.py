"""The commands of `fastlora`: their options, and nothing of what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastlora.accounting.gpus import GPUS
from fastlora.cli.budget import budget
from fastlora.cli.group import Commands
from fastlora.cli.info import DTYPES, InfoOptionError, answer
from fastlora.cli.job import carry_out
from fastlora.cli.mlp import mlp
from fastlora.cli.svd import svd
from fastlora.recipes.methods import METHODS
from fastlora.recipes.mnist import run
from fastlora.recipes.options import AUTO, MnistOptions
from fastlora.recipes.summary import print_summary
from fastlora.routes.backend import BackendError, get_backend
from fastlora.version import __version__

_DTYPE = click.Choice(DTYPES)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastlora")
def fastlora() -> None:
    """LoRA linear layers whose forward and backward each run as one fused Triton kernel."""
    try:
        get_backend()
    except ValueError as error:
        raise click.ClickException(str(error)) from error


fastlora.add_command(svd)


@fastlora.command(context_settings={"show_default": True})
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
@click.option("--device", default=AUTO, help=f"Such as cpu or cuda; {AUTO}: the GPU where there is one.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("mnist-out"),
    help="Folder for results.json, the adapter and the picture.",
)
def mnist(digit: str, **chosen: Any) -> None:
    """Train a net on handwritten digits, fine-tune it with LoRA on one digit, and prove what LoRA promises.

    With LoRA on, the net knows that digit better. With LoRA off, it is bit for bit the net from before.
    """
    number = int(digit) if digit.isdecimal() else digit
    carry_out(lambda: MnistOptions(digit=number, **chosen), run, print_summary)


@fastlora.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option(
    "--shape", help="M,K,N,r: explain one layer and batch instead: code, tiles, bytes, FLOPs, floor."
)
@click.option("--dtype", type=_DTYPE, help="With --shape, of x and W.  [default: bfloat16]")
@click.option(
    "--adapter-dtype",
    type=_DTYPE,
    help="With --shape, of A and B.  [default: that of x, but fp32 beside 16 bits]",
)
@click.option("--gpu", type=click.Choice(list(GPUS)), help="With --shape, a GPU other than this machine's.")
def info(**chosen: Any) -> None:
    """Show versions, devices, and which code each device and dtype takes, and why."""
    try:
        text = answer(**chosen)
    except InfoOptionError as error:
        raise click.UsageError(str(error)) from error
    except BackendError as error:
        raise click.ClickException(str(error)) from error
    click.echo(text)


fastlora.add_command(budget)
fastlora.add_command(mlp)
