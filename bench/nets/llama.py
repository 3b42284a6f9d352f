"""Transformers' Llama with random weights, from one that a test can run to the 8B of Llama 3.1."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from bench.methods.method import Update
from bench.task import Batch, Outcome, Task

_BATCHES: Final = 4


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
        {"tokens": torch.randint(size.vocabulary, text, generator=generator).to(device)}
        for _ in range(_BATCHES)
    ]
    with torch.device("meta"):
        head = "lm_head"
        names = [
            module_name
            for module_name, module in _llama(size).named_modules()
            if isinstance(module, nn.Linear) and module_name != head
        ]

    def build() -> nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        try:
            with torch.device(device):
                return _llama(size).train()
        finally:
            torch.set_default_dtype(before)

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
