"""`fastlora generate`: its options, one answer to a prompt, or a chat in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastlora.adapter_files import AdapterError
from fastlora.cli.reporting import reported
from fastlora.recipes.finetune.generate import GenerateOptions, Speaker
from fastlora.recipes.finetune.options import BASES, DEVICES, DTYPES
from fastlora.recipes.options import AUTO


@click.command(context_settings={"show_default": True})
@click.option("--model", help="A folder, or a name on the hub.  [default: the one that the adapter names]")
@click.option("--adapter", type=click.Path(file_okay=False, path_type=Path), help="An adapter's folder.")
@click.option("--prompt", help="Print one answer to this. Without it there is a chat; an empty line ends it.")
@click.option("--system", help="What the chat begins with, as the role system.")
@click.option("--raw", is_flag=True, help="Take prompts as they stand, without the model's chat template.")
@click.option("--max-tokens", type=int, default=256, help="Of an answer.")
@click.option("--temperature", type=float, default=0.0, help="0: always the most likely token.")
@click.option("--base", type=click.Choice(BASES), help="Pack the base in 4 bits.")
@click.option("--dtype", type=click.Choice(DTYPES), default=AUTO, help="Of the base; auto: as in its files.")
@click.option("--seed", type=int, default=0, help="Of what is drawn.")
@click.option("--device", type=click.Choice(DEVICES), default=AUTO, help="auto: the GPU where there is one.")
def generate(prompt: str | None, **chosen: Any) -> None:
    """Talk to a model, with an adapter or without."""
    with reported(failed=()):
        options = GenerateOptions(**chosen)
    with reported(wrong=(), failed=(AdapterError, ImportError, OSError, ValueError)):
        speaker = Speaker(options)
        if prompt is not None:
            click.echo(speaker.answer([{"role": "user", "content": prompt}]))
        else:
            _chat(speaker)


def _chat(speaker: Speaker) -> None:
    """Answer each line that is typed, until an empty one or the end of the input."""
    from transformers import TextStreamer

    streamer = TextStreamer(speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = click.prompt("you", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            return
        if not said.strip():
            return
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": speaker.answer(turns, streamer)})
