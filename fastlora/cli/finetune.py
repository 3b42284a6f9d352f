"""`fastlora finetune`: its options; the job is in `fastlora.recipes.finetune`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from rich.console import Console

from fastlora.adapter_files import AdapterError
from fastlora.cli.config_option import config_option
from fastlora.cli.options import out_option
from fastlora.cli.reporting import reported
from fastlora.recipes.finetune.job import run
from fastlora.recipes.finetune.options import BASES, DEVICES, DTYPES, LORA, METHODS, FinetuneOptions
from fastlora.recipes.finetune.summary import print_summary
from fastlora.recipes.finetune.trainer import CHECKPOINTS, whole_checkpoints
from fastlora.recipes.options import AUTO
from fastlora.routes.backend import BackendError


@click.command(context_settings={"show_default": True})
@config_option()
@click.option(
    "--model", required=True, help="A folder, a name on the hub, or tiny: random weights, to try it offline."
)
@click.option(
    "--data",
    required=True,
    help="A JSONL file or a data set on the hub; a row holds messages, prompt and completion, or text.",
)
@click.option(
    "--eval-data", help="The same, to evaluate on.  [default: a share of --data]", show_default=False
)
@click.option("--eval-share", type=float, default=0.1, help="That share; 0 evaluates nothing.")
@click.option("--method", type=click.Choice(METHODS), default=LORA, help="full trains every weight.")
@click.option("--r", type=int, default=16, help="Rank of the updates.")
@click.option("--alpha", type=float, default=32.0, help="The updates are scaled by alpha / r.")
@click.option("--dropout", type=float, default=0.0, help="Of LoRA.")
@click.option("--targets", default="all-linear", help="all-linear, or names of layers, separated by commas.")
@click.option("--base", type=click.Choice(BASES), help="Pack the base in 4 bits, as QLoRA does.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=AUTO,
    help="Of the base; auto: bfloat16 on a GPU, float32 on a CPU and for --method full.",
)
@click.option("--length", type=int, default=1024, help="Tokens of a row at most; the rest is cut off.")
@click.option("--packing", is_flag=True, help="Put rows together until they have that length.")
@click.option("--batch", type=int, default=4, help="Rows in a batch, of each process.")
@click.option("--accumulate", type=int, default=1, help="Batches in a step.")
@click.option("--lr", type=float, default=2e-4, help="The highest learning rate.")
@click.option("--epochs", type=float, default=1.0, help="Passes over the data.")
@click.option("--max-steps", type=int, help="Steps to train instead.")
@click.option("--checkpointing", is_flag=True, help="Compute activations twice, to save memory.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--seed", type=int, default=0, help="Of all that is random.")
@click.option("--device", type=click.Choice(DEVICES), default=AUTO, help="auto: the GPU where there is one.")
@out_option("finetune-out", "checkpoints, the adapter, results.json and the picture")
def finetune(**chosen: Any) -> None:
    """Fine-tune a language model with LoRA, by TRL's SFTTrainer.

    `fastlora finetune --config tiny` shows the whole way in a minute, offline. On several GPUs:
    torchrun --nproc_per_node 2 -m fastlora finetune ...
    """
    with reported(failed=()):
        options = FinetuneOptions(**chosen)
    console = Console()
    say = None if sys.stderr.isatty() else (lambda line: console.print(line, markup=False, highlight=False))
    failed = (AdapterError, BackendError, FloatingPointError, ImportError, OSError, ValueError, TypeError)
    with reported(wrong=(), failed=failed):
        try:
            result = run(options, say)
        except KeyboardInterrupt:
            if whole_checkpoints(options.out / CHECKPOINTS):
                click.echo("the same command with --resume goes on from the last checkpoint", err=True)
            raise
    if os.environ.get("RANK", "0") == "0":
        print_summary(result, console)
