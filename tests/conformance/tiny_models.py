"""Stand-ins for the tiny models of PEFT's tests, made on the spot: no test asks the hub for anything.

They have the architecture and the name of those on the hub, other sizes and other random weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastlora.recipes.finetune.tiny import tiny_tokenizer

_SIZES: Final = {
    "vocab_size": 1024,  # the tests name tokens up to 1000
    "hidden_size": 64,  # a test has a rank of 20
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_OPT: Final = {"num_hidden_layers": 5, "ffn_dim": 64, "word_embed_proj_dim": 64}
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("opt", _OPT),
    "peft-internal-testing/opt-125m": ("opt", _OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("gpt2", {}),
    "peft-internal-testing/tiny-random-gpt2": ("gpt2", {}),
    "hf-internal-testing/tiny-random-gpt2": ("gpt2", {}),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("gptj", {"rotary_dim": 16}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("llama", {}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("mistral", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("qwen2", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("gemma3_text", {"head_dim": 16, "hidden_size": 16}),
}
_COMMIT: Final = "0" * 40


class _All(dict[str, int]):
    """Models that PEFT's tests take for downloaded, so that they stay offline: all of them."""

    def __contains__(self, model: object) -> bool:
        return True

    def __missing__(self, model: str) -> int:
        return 1


def write_models(hub: Path) -> None:
    """Write those that are missing into a cache of the hub, as huggingface_hub lays it out."""
    for name, (kind, own) in MODELS.items():
        folder = hub / f"models--{name.replace('/', '--')}"
        if (folder / "refs" / "main").exists():
            continue
        snapshot = folder / "snapshots" / _COMMIT
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SIZES, **own}))
        model.save_pretrained(snapshot)
        tiny_tokenizer().save_pretrained(snapshot)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(_COMMIT, encoding="utf-8")  # last: it says that all is there


def pytest_configure() -> None:
    write_models(Path(os.environ["HF_HUB_CACHE"]))


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)  # the same values with PEFT's layers and with fastlora's


def pytest_collection_finish(session: pytest.Session) -> None:
    for name, module in list(sys.modules.items()):
        if name.endswith(".testing_utils") and hasattr(module, "_HUB_MODEL_ACCESSES"):
            module._HUB_MODEL_ACCESSES = _All()
