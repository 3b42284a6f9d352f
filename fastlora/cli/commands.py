"""The `fastlora` command, and `fastlora info`: options only; what it answers is in `info`."""

from __future__ import annotations

from typing import Any

import click

from fastlora.accounting.gpus import GPUS
from fastlora.cli.budget import budget
from fastlora.cli.finetune import finetune
from fastlora.cli.generate import generate
from fastlora.cli.group import Commands
from fastlora.cli.info import DTYPES, InfoOptionError, answer
from fastlora.cli.merge import merge
from fastlora.cli.mlp import mlp
from fastlora.cli.mnist import mnist
from fastlora.cli.reporting import reported
from fastlora.cli.svd import svd
from fastlora.cli.tune import tune
from fastlora.routes.backend import BackendError, get_backend
from fastlora.version import __version__

_DTYPE = click.Choice(DTYPES)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastlora")
def fastlora() -> None:
    """LoRA linear layers whose forward and backward each run as one fused Triton kernel."""
    with reported(failed=(ValueError,)):
        get_backend()


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
    with reported(wrong=(InfoOptionError,), failed=(BackendError,)):
        text = answer(**chosen)
    click.echo(text)


for command in (budget, finetune, generate, merge, mlp, mnist, svd, tune):
    fastlora.add_command(command)
