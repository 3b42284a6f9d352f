"""A Transformers Llama with random weights, fine-tuned by every method: `python -m bench.model`.

All linear layers but the output head are adapted. The step is split into forward, backward and optimizer, and
taken as it is, with activation checkpointing, and under torch.compile.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import click
import torch
from torch import nn

from bench.level import POSITIVE, Level, level, several
from bench.measure import measure_task, on_record
from bench.methods import GROUPED, IN_NETS
from bench.methods.method import Update
from bench.step import ADAMS, MODES
from bench.task import Batch, Outcome, Task, seeded

LEVEL = "model"

# Layers of the net that is held to fp64: all of the large ones would not fit beside it.
CHECKED_LAYERS = 2

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# (sizes, tokens in a row, dtype) by device, unless asked otherwise.
_USUAL: dict[str, tuple[list[str], int, str]] = {
    "cpu": (["10M"], 256, "float32"),
    "cuda": (["1B", "8B"], 2048, "bfloat16"),
}


class Size(NamedTuple):
    """What tells one Llama from another; `hidden` and `inner` count columns."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


# From 1B on those of Meta's config.json files: Llama 3.2 1B and 3B, Llama 3.1 8B.
SIZES: Final = {
    "tiny": Size(64, 176, 2, 4, 2, 256),
    "10M": Size(256, 688, 8, 8, 4, 4096),
    "60M": Size(512, 1408, 12, 8, 4, 16384),
    "1B": Size(2048, 8192, 16, 32, 8, 128256),
    "3B": Size(3072, 8192, 28, 24, 8, 128256),
    "8B": Size(4096, 14336, 32, 32, 8, 128256),
}


class Text(NamedTuple):
    """Rows of a batch, and tokens in a row: random ones, as time does not depend on them."""

    batch: int
    length: int


def llama_task(
    name: str, text: Text, update: Update, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> Task:
    """Llama with every linear layer adapted but the output head; with fewer decoder layers for a check.

    Raises:
        ImportError: If Transformers is not installed.
    """
    size = SIZES[name] if layers is None else SIZES[name]._replace(layers=layers)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"tokens": torch.randint(size.vocabulary, text, generator=generator).to(device)} for _ in range(4)
    ]
    with torch.device("meta"):
        head = "lm_head"
        names = [
            module_name
            for module_name, module in _llama(size).named_modules()
            if isinstance(module, nn.Linear) and module_name != head
        ]

    def build() -> nn.Module:
        with seeded(device, dtype):
            return _llama(size).train()

    shape = {**text._asdict(), **size._asdict(), "r": update.r}
    return Task(f"llama-{name}", shape, dtype, build, names, update, batches, _run)


def _llama(size: Size) -> nn.Module:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ImportError('this level needs Transformers: pip install "fastlora-triton[peers]"') from error
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            vocab_size=size.vocabulary,
            use_cache=False,
        )
    )
    assert isinstance(model, nn.Module)
    return model


def _run(model: nn.Module, batch: Batch) -> Outcome:
    outcome = model(input_ids=batch["tokens"], labels=batch["tokens"])
    return Outcome(outcome.loss, outcome.logits)


@level(LEVEL, 15, (*IN_NETS, GROUPED.name), ("full", "peft", "fastlora", GROUPED.name))
@several("--adam", ADAMS, ["fused"])
@several("--sizes", SIZES, help="(default: 10M on a CPU, 1B and 8B on a GPU)")
@several("--modes", MODES, ["eager", "checkpoint"])
@click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Rows.")
@click.option("--length", type=POSITIVE, help="Tokens in a row (default: 256 on a CPU, 2048 on a GPU).")
@click.option("--rank", type=POSITIVE, default=16, show_default=True)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), help="(default: float32 on a CPU, else bfloat16)")
@click.option("--adapter-dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
def main(level: Level, rank: int, **asked: Any) -> None:
    """Measure every size in every mode."""
    results, device = level.results, level.device
    sizes, length, base = _USUAL[device.type]
    dtype, text = _DTYPES[asked["dtype"] or base], Text(asked["batch"], asked["length"] or length)
    update = Update(rank, 2.0 * rank, 0.0, _DTYPES[asked["adapter_dtype"]])
    ceilings, here = level.ceilings(dtype), level.present(dtype)
    for size in asked["sizes"] or sizes:
        for mode in asked["modes"]:
            with on_record(results.problems, f"{LEVEL} {size}, {mode}"):
                task = llama_task(size, text, update, device, dtype)
                checked = llama_task(size, text, update, device, dtype, layers=CHECKED_LAYERS)
                for adam in asked["adam"]:
                    measure_task(results, LEVEL, task, checked, mode, adam, here, ceilings, level.effort)
            level.save()


if __name__ == "__main__":
    main()
